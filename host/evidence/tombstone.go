package evidence

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"
)

// A tombstone stands for the beginning of a stream that is no longer there. It
// is a file that is named by the index at which the record now begins and holds
// a signed note of the host's key over
//
//	outguard evidence tombstone v1
//	stream, next, chain: all before the record next is gone; h of the last of them
//	bytes: of sealed segments and remainders, on disk, all together
//	latest: the latest time of a record in them
//	reason, time: why the last of them was given up, and when
const (
	goneSuffix     = ".gone"
	tombstoneTitle = "outguard evidence tombstone v1"
)

func goneName(next uint64) string { return fmt.Sprintf("%020d%s", next, goneSuffix) }

// Tombstone says what a stream once began with.
type Tombstone struct {
	Stream uuid.UUID `json:"stream"`
	Next   uint64    `json:"next"`  // the record begins here
	Chain  Hash      `json:"chain"` // before that
	Bytes  uint64    `json:"bytes"` // on disk, of all that is gone
	Latest time.Time `json:"latest"`
	Reason string    `json:"reason"` // of the last that was given up
	Time   time.Time `json:"time"`   // and when
}

func (t Tombstone) text() string {
	return fmt.Sprintf("%s\nstream %s\nnext %d\nchain %s\nbytes %d\nlatest %s\nreason %s\ntime %s\n",
		tombstoneTitle, t.Stream, t.Next, t.Chain, t.Bytes, t.Latest.UTC().Format(time.RFC3339Nano), t.Reason, t.Time.UTC().Format(time.RFC3339Nano))
}

func parseTombstone(text string) (Tombstone, error) {
	f, err := noteFields(text, tombstoneTitle, "stream", "next", "chain", "bytes", "latest", "reason", "time")
	if err != nil {
		return Tombstone{}, err
	}
	t := Tombstone{Reason: f[5]}
	var errs [6]error
	t.Stream, errs[0] = uuid.Parse(f[0])
	t.Next, errs[1] = strconv.ParseUint(f[1], 10, 64)
	errs[2] = t.Chain.UnmarshalText([]byte(f[2]))
	t.Bytes, errs[3] = strconv.ParseUint(f[3], 10, 64)
	t.Latest, errs[4] = time.Parse(time.RFC3339Nano, f[4])
	t.Time, errs[5] = time.Parse(time.RFC3339Nano, f[6])
	if err := errors.Join(errs[:]...); err != nil {
		return Tombstone{}, err
	}
	if t.text() != text {
		return Tombstone{}, errors.New("tombstone is not in its canonical form")
	}
	return t, nil
}

// readTombstone reads and verifies the tombstone of what is before an index.
func readTombstone(dir string, next uint64, v note.Verifier) (Tombstone, error) {
	path := filepath.Join(dir, goneName(next))
	fi, err := os.Lstat(path)
	if err != nil {
		return Tombstone{}, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxNote {
		return Tombstone{}, fmt.Errorf("tombstone: %s of %d bytes", fi.Mode().Type(), fi.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Tombstone{}, err
	}
	text, err := OpenNote(b, v)
	if err != nil {
		return Tombstone{}, fmt.Errorf("tombstone: %w", err)
	}
	t, err := parseTombstone(text)
	if err == nil && t.Next != next {
		err = fmt.Errorf("tombstone of what is before record %d", t.Next)
	}
	return t, err
}
