package engines

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// Store keeps checkpoints across restarts.
type Store interface {
	Save(engineName string, vm uuid.UUID, s Saved) error
	// Load returns every checkpoint. One that is there and cannot be read has
	// its Err set.
	Load(engineName string) (map[uuid.UUID]Saved, error)
}

// Saved is a stored checkpoint and the last batch that it covers; a zero
// position says that it covers what the one before it covered.
type Saved struct {
	Session uuid.UUID
	Index   uint64
	Data    []byte
	Err     error // from Load: why there is nothing else
}

// Memory is a Store for as long as the process lives.
type Memory struct {
	mu    sync.Mutex
	saved map[string]map[uuid.UUID]Saved
}

// NewMemory makes an empty one.
func NewMemory() *Memory { return &Memory{saved: map[string]map[uuid.UUID]Saved{}} }

func (m *Memory) Save(name string, vm uuid.UUID, s Saved) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.saved[name] == nil {
		m.saved[name] = map[uuid.UUID]Saved{}
	}
	m.saved[name][vm] = s.after(m.saved[name][vm])
	return nil
}

func (m *Memory) Load(name string) (map[uuid.UUID]Saved, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.saved[name]), nil
}

// after keeps the position of the one before where s has none.
func (s Saved) after(before Saved) Saved {
	if s.Session == uuid.Nil && s.Index == 0 {
		s.Session, s.Index = before.Session, before.Index
	}
	return s
}

// Dir is a Store of files, <dir>/<engine>/<vm>.checkpoint, each written anew
// and synced before it takes the place of the one before:
//
//	"OGCKPT1\n" | session 16 | index u64 | sha256 of all before and the data 32 | data
type Dir string

const (
	storeMagic  = "OGCKPT1\n"
	storeFixed  = len(storeMagic) + 16 + 8 + sha256.Size
	storeSuffix = ".checkpoint"
)

func (d Dir) path(name string, vm uuid.UUID) string {
	return filepath.Join(string(d), name, vm.String()+storeSuffix)
}

// Save writes the checkpoint.
func (d Dir) Save(name string, vm uuid.UUID, s Saved) error {
	path := d.path(name, vm)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("save checkpoint: %w", err)
	}
	if s.Session == uuid.Nil && s.Index == 0 {
		if before, err := readSaved(path); err == nil {
			s = s.after(before)
		}
	}
	if err := replace(path, appendSaved(nil, s)); err != nil {
		return fmt.Errorf("save checkpoint: %w", err)
	}
	return nil
}

func replace(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Load reads every checkpoint of the engine.
func (d Dir) Load(name string) (map[uuid.UUID]Saved, error) {
	entries, err := os.ReadDir(filepath.Join(string(d), name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load checkpoints: %w", err)
	}
	all := map[uuid.UUID]Saved{}
	for _, e := range entries {
		base, is := strings.CutSuffix(e.Name(), storeSuffix)
		vm, err := uuid.Parse(base)
		if !is || err != nil {
			continue // not ours
		}
		s, err := readSaved(d.path(name, vm))
		if err != nil {
			s = Saved{Err: fmt.Errorf("load checkpoint: %w", err)}
		}
		all[vm] = s
	}
	return all, nil
}

// Position says up to which batch of a VM the checkpoint of an engine reaches,
// from its head alone; false where there is none.
func (d Dir) Position(name string, vm uuid.UUID) (index uint64, ok bool) {
	f, err := os.Open(d.path(name, vm))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	var head [32]byte
	if _, err := io.ReadFull(f, head[:]); err != nil || string(head[:8]) != storeMagic || uuid.UUID(head[8:24]) == uuid.Nil {
		return 0, false
	}
	return binary.LittleEndian.Uint64(head[24:]), true
}

func readSaved(path string) (Saved, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Saved{}, err
	}
	return parseSaved(b)
}

func appendSaved(b []byte, s Saved) []byte {
	start := len(b)
	b = append(b, storeMagic...)
	b = append(b, s.Session[:]...)
	b = binary.LittleEndian.AppendUint64(b, s.Index)
	h := sha256.New()
	h.Write(b[start:])
	h.Write(s.Data)
	b = h.Sum(b)
	return append(b, s.Data...)
}

func parseSaved(b []byte) (Saved, error) {
	if len(b) < storeFixed || len(b) > storeFixed+engine.MaxCheckpoint || !bytes.HasPrefix(b, []byte(storeMagic)) {
		return Saved{}, fmt.Errorf("checkpoint of %d bytes: %w", len(b), engine.ErrInvalid)
	}
	head := b[:storeFixed-sha256.Size]
	s := Saved{
		Session: uuid.UUID(head[8:24]), Index: binary.LittleEndian.Uint64(head[24:]),
		Data: b[storeFixed:],
	}
	h := sha256.New()
	h.Write(head)
	h.Write(s.Data)
	if !bytes.Equal(h.Sum(nil), b[len(head):storeFixed]) {
		return Saved{}, fmt.Errorf("checkpoint digest: %w", engine.ErrInvalid)
	}
	return s, nil
}
