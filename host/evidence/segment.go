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
	rest   bool // a remainder, which is sealed too
}

var tempNames = []string{sealedSuffix + tempSuffix, indexSuffix + tempSuffix, restSuffix + tempSuffix, goneSuffix + tempSuffix}

func segmentName(first uint64, sealed bool) string {
	if sealed {
		return fmt.Sprintf("%020d%s", first, sealedSuffix)
	}
	return fmt.Sprintf("%020d%s", first, plainSuffix)
}

// listing is what a stream's directory holds.
type listing struct {
	segments []segmentFile // ascending; of a pair the sealed one
	leftover []segmentFile // plain segments and remainders that have a sealed twin
	gone     uint64        // where the record begins, if a tombstone says so
	stones   []segmentFile // the tombstones; first is where the record begins by each
	spent    []segmentFile // segments that the tombstone stands for
	indexes  []segmentFile // of segments
	cuts     []string      // bytes that recoveries set aside
	temps    []string
	exported []string // KeysFile and StatementFile, as in what is exported
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
	l.bury()
	return l, nil
}

// bury takes the segments out that a tombstone stands for.
func (l *listing) bury() {
	for _, s := range l.stones {
		l.gone = max(l.gone, s.first)
	}
	n := 0
	for n < len(l.segments) && l.segments[n].first < l.gone {
		n++
	}
	l.spent, l.segments = l.segments[:n], l.segments[n:]
}

// dedup takes the plain one of each pair out; the sealed one stands first.
func (l *listing) dedup() {
	all := l.segments
	l.segments = nil
	for i, s := range all {
		if i > 0 && s.first == all[i-1].first {
			l.leftover = append(l.leftover, s)
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
	case (name == KeysFile || name == StatementFile) && e.Type().IsRegular():
		l.exported = append(l.exported, name)
	case err != nil || len(digits) != 20 || !e.Type().IsRegular():
		l.strange = append(l.strange, name)
	case rest == plainSuffix || rest == sealedSuffix:
		l.segments = append(l.segments, segmentFile{first: first, name: name, sealed: rest == sealedSuffix})
	case rest == restSuffix:
		l.segments = append(l.segments, segmentFile{first: first, name: name, sealed: true, rest: true})
	case rest == goneSuffix:
		l.stones = append(l.stones, segmentFile{first: first, name: name})
	case rest == indexSuffix:
		l.indexes = append(l.indexes, segmentFile{first: first, name: name})
	case slices.Contains(tempNames, rest):
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
