package evidence

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

const (
	plainSuffix  = ".seg"
	sealedSuffix = ".seg.zst"
	cutSuffix    = ".cut"
	tempSuffix   = ".tmp"
	lockName     = "lock"
)

// segmentFile is one file of a stream's directory.
type segmentFile struct {
	first  uint64
	name   string
	sealed bool
}

func segmentName(first uint64, sealed bool) string {
	if sealed {
		return fmt.Sprintf("%020d%s", first, sealedSuffix)
	}
	return fmt.Sprintf("%020d%s", first, plainSuffix)
}

// listing is what a stream's directory holds.
type listing struct {
	segments []segmentFile // ascending; of a pair the sealed one
	leftover []string      // plain segments that have a sealed twin
	indexes  []segmentFile // of segments
	cuts     []string      // bytes that recoveries set aside
	temps    []string
	strange  []string // anything else
}

func list(dir string) (listing, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return listing{}, fmt.Errorf("list stream: %w", err)
	}
	var l listing
	for _, e := range entries {
		l.add(e)
	}
	slices.SortFunc(l.segments, func(a, b segmentFile) int {
		if c := cmp.Compare(a.first, b.first); c != 0 {
			return c
		}
		return strings.Compare(b.name, a.name) // sealed first
	})
	l.dedup()
	return l, nil
}

// dedup takes the plain one of each pair out; the sealed one stands first.
func (l *listing) dedup() {
	all := l.segments
	l.segments = nil
	for i, s := range all {
		if i > 0 && s.first == all[i-1].first {
			l.leftover = append(l.leftover, s.name)
			continue
		}
		l.segments = append(l.segments, s)
	}
}

func (l *listing) add(e os.DirEntry) {
	name := e.Name()
	digits, rest, _ := strings.Cut(name, ".")
	first, err := strconv.ParseUint(digits, 10, 64)
	switch rest = "." + rest; {
	case err != nil || len(digits) != 20 || !e.Type().IsRegular():
		l.strange = append(l.strange, name)
	case rest == plainSuffix || rest == sealedSuffix:
		l.segments = append(l.segments, segmentFile{first, name, rest == sealedSuffix})
	case rest == indexSuffix:
		l.indexes = append(l.indexes, segmentFile{first: first, name: name})
	case rest == sealedSuffix+tempSuffix || rest == indexSuffix+tempSuffix:
		l.temps = append(l.temps, name)
	case strings.HasSuffix(rest, cutSuffix):
		l.cuts = append(l.cuts, name)
	default:
		l.strange = append(l.strange, name)
	}
}

// settled lists a stream again for as long as its writer is between renaming a
// sealed segment and removing the plain one.
func settled(dir string) (listing, error) {
	for try := 0; ; try++ {
		l, err := list(dir)
		if err != nil || len(l.leftover) == 0 || try == 10 {
			return l, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Streams lists the VMs that a store has streams of.
func Streams(store string) ([]uuid.UUID, error) {
	dirs, err := StreamDirs(store)
	if err != nil {
		return nil, err
	}
	var ids []uuid.UUID
	for _, dir := range dirs {
		if id, err := uuid.Parse(filepath.Base(dir)); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// StreamDirs lists the directories of all streams of a store, also of those
// that SetAside took out of use.
func StreamDirs(store string) ([]string, error) {
	entries, err := os.ReadDir(store)
	if err != nil {
		return nil, fmt.Errorf("list evidence: %w", err)
	}
	var dirs []string
	for _, e := range entries {
		name, _, _ := strings.Cut(e.Name(), asideInfix)
		id, err := uuid.Parse(name)
		if err == nil && e.IsDir() && id.String() == name {
			dirs = append(dirs, filepath.Join(store, e.Name()))
		}
	}
	return dirs, nil
}

// asideInfix stands between a stream's name and a number once it is set aside.
const asideInfix = ".corrupt-"

// StreamDir is the directory of a VM's stream in a store.
func StreamDir(store string, vm uuid.UUID) string { return filepath.Join(store, vm.String()) }

// errNoStream is also fs.ErrNotExist: the stream has no record yet.
var errNoStream = fmt.Errorf("no evidence there: %w", fs.ErrNotExist)
