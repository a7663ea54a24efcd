package respond

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// wal is the journal's write-ahead log. A transaction of bbolt's syncs twice, its
// pages and then its head, and a VM that is to be stopped runs as long. Here its
// orders are on disk with one write and one sync, in a file that never grows; the
// next transaction takes them along, a second later at most.
//
// The file holds one batch, or zeros, at its beginning:
//
//	magic u32 | length u32 | CRC-32C of the payload u32 | payload, JSON of batch
//
// little-endian.
type wal struct {
	f *os.File
}

const (
	walSize   = 64 << 10
	walHeader = 12
	walMagic  = 0x314c574f // "OWL1", the last of it the version
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errTooLarge: the batch does not fit into the write-ahead log.
var errTooLarge = errors.New("too large for the write-ahead log")

// batch is what is journaled at once: orders, and results that are known already.
type batch struct {
	Orders  []Order  `json:"orders"`
	Results []Result `json:"results,omitempty"`
}

// openWAL opens the log at path, or makes it.
func openWAL(path string) (*wal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	w := &wal{f: f}
	if err := w.allocate(path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return w, nil
}

// read returns the batch in the log, and of one that is not whole what is wrong
// with it.
func (w *wal) read() (b batch, torn, err error) {
	text := make([]byte, walSize)
	if _, err := w.f.ReadAt(text, 0); err != nil {
		return b, nil, err
	}
	b, torn = parseWAL(text)
	if torn != nil {
		w.clear()
	}
	return b, torn, nil
}

// allocate fills the file up with zeros, so that no write to it later needs room,
// or a sync of anything but its own bytes.
func (w *wal) allocate(path string) error {
	fi, err := w.f.Stat()
	if err != nil || fi.Size() >= walSize {
		return err
	}
	if _, err := w.f.WriteAt(make([]byte, walSize-fi.Size()), fi.Size()); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// parseWAL returns the batch in the log's bytes, an empty one where there is none.
func parseWAL(text []byte) (b batch, err error) {
	if len(text) < walHeader {
		return b, io.ErrUnexpectedEOF
	}
	le := binary.LittleEndian
	magic, length, sum := le.Uint32(text), le.Uint32(text[4:]), le.Uint32(text[8:])
	switch {
	case magic == 0 && length == 0 && sum == 0:
		return b, nil
	case magic != walMagic:
		return b, fmt.Errorf("magic %#x", magic)
	case int64(length) > int64(len(text)-walHeader):
		return b, fmt.Errorf("a batch of %d bytes: %w", length, io.ErrUnexpectedEOF)
	}
	payload := text[walHeader:][:length]
	if got := crc32.Checksum(payload, castagnoli); got != sum {
		return b, fmt.Errorf("checksum %08x, of what is there %08x", sum, got)
	}
	if err := json.Unmarshal(payload, &b); err != nil {
		return batch{}, err
	}
	return b, nil
}

// write has b on disk when it returns, instead of what was there. On an error it is
// taken back, as far as the disk lets it.
func (w *wal) write(b *batch) error {
	text, err := b.encode()
	if err != nil {
		return err
	}
	if err := w.writeSynced(text); err != nil {
		return errors.Join(err, w.writeSynced(make([]byte, walHeader)))
	}
	return nil
}

// encode returns what parseWAL reads.
func (b *batch) encode() ([]byte, error) {
	payload, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	if len(payload) > walSize-walHeader {
		return nil, errTooLarge
	}
	text := make([]byte, 0, walHeader+len(payload))
	text = binary.LittleEndian.AppendUint32(text, walMagic)
	text = binary.LittleEndian.AppendUint32(text, uint32(len(payload)))
	text = binary.LittleEndian.AppendUint32(text, crc32.Checksum(payload, castagnoli))
	return append(text, payload...), nil
}

// writeSynced is a write and its sync in one system call.
func (w *wal) writeSynced(text []byte) error {
	for at := 0; at < len(text); {
		n, err := unix.Pwritev2(int(w.f.Fd()), [][]byte{text[at:]}, int64(at), unix.RWF_DSYNC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", w.f.Name(), err)
		}
		at += n
	}
	return nil
}

// clear says that the journal has the batch. It need not be on disk, or succeed:
// the journal passes over what it has.
func (w *wal) clear() { _, _ = w.f.WriteAt(make([]byte, walHeader), 0) }

func (w *wal) close() error {
	if err := errors.Join(w.f.Sync(), w.f.Close()); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
