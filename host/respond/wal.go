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
// transaction follows while they are carried out.
//
// The file holds one batch, or none, at its beginning:
//
//	length u32 | CRC-32C of the payload u32 | payload, JSON of batch
//
// little-endian. A batch whose checksum is wrong was cut off by a crash before
// anybody was told that it was there.
type wal struct {
	f *os.File
}

const (
	walSize   = 64 << 10
	walHeader = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errTooLarge: the batch does not fit into the write-ahead log.
var errTooLarge = errors.New("too large for the write-ahead log")

// batch is what is journaled at once: orders, and results that are known already.
type batch struct {
	Orders  []Order  `json:"orders"`
	Results []Result `json:"results,omitempty"`
}

// openWAL opens the log at path, or makes it, and returns the batch in it, nil:
// none that is whole.
func openWAL(path string) (*wal, *batch, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	w := &wal{f: f}
	text, err := io.ReadAll(io.LimitReader(f, walSize))
	if err == nil && len(text) < walSize {
		err = w.allocate(path, walSize-len(text))
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return w, parseWAL(text), nil
}

// allocate writes the rest of the file, so that no write to it later needs room,
// or a sync of anything but its own bytes.
func (w *wal) allocate(path string, rest int) error {
	if _, err := w.f.WriteAt(make([]byte, rest), int64(walSize-rest)); err != nil {
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

// parseWAL returns the batch in the log's bytes, nil: none that is whole.
func parseWAL(text []byte) *batch {
	if len(text) < walHeader {
		return nil
	}
	length, sum := binary.LittleEndian.Uint32(text), binary.LittleEndian.Uint32(text[4:])
	if length == 0 || int64(length) > int64(len(text)-walHeader) {
		return nil
	}
	payload := text[walHeader:][:length]
	if crc32.Checksum(payload, castagnoli) != sum {
		return nil
	}
	var b batch
	if json.Unmarshal(payload, &b) != nil {
		return nil
	}
	return &b
}

// write has b on disk when it returns, instead of what was there.
func (w *wal) write(b *batch) error {
	text, err := b.encode()
	if err != nil {
		return err
	}
	return w.writeSynced(text)
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
	text := make([]byte, walHeader, walHeader+len(payload))
	binary.LittleEndian.PutUint32(text, uint32(len(payload)))
	binary.LittleEndian.PutUint32(text[4:], crc32.Checksum(payload, castagnoli))
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

func (w *wal) close() error { return errors.Join(w.f.Sync(), w.f.Close()) }
