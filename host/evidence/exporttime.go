package evidence

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Exported is what ExportTime has taken.
type Exported struct {
	Range
	Since   time.Time `json:"since,omitzero"`
	Until   time.Time `json:"until,omitzero"`
	Records uint64    `json:"records"`        // of that time
	GivenUp bool      `json:"given_up"`       // a part of it was, and has its tombstone instead
	Left    uint64    `json:"left,omitempty"` // records of that time that no head has signed, and which are not in it
}

// ExportTime copies what a stream of a store has from a time on and before
// another (zero: no bound) into a new directory, up to and with the signed head
// that covers the last of it, so that Verify takes it anywhere. What retention
// left of a segment comes along as it is, and whole; KeysFile does where there
// is one. Where a monitor writes, a head that is due is waited for. On an error
// nothing remains.
func ExportTime(ctx context.Context, stream, dir string, since, until time.Time) (Exported, error) {
	if _, err := os.Lstat(dir); err == nil {
		return Exported{}, fmt.Errorf("export evidence: %s: %w", dir, os.ErrExist)
	}
	if (&walk{c: cursor{dir: dir}}).whole() || inStore(dir) {
		return Exported{}, fmt.Errorf("export evidence: %s would be taken for a store's whole record: choose another name, elsewhere", dir)
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-*")
	if err != nil {
		return Exported{}, fmt.Errorf("export evidence: %w", err)
	}
	x, err := exportTime(ctx, stream, temp, since, until)
	if err == nil {
		err = errors.Join(os.Chmod(temp, 0o750), syncDir(temp), os.Rename(temp, dir), syncDir(filepath.Dir(dir)))
	}
	if err != nil {
		return Exported{}, fmt.Errorf("export evidence: %w", errors.Join(err, os.RemoveAll(temp)))
	}
	return x, nil
}

func exportTime(ctx context.Context, stream, dir string, since, until time.Time) (Exported, error) {
	x := Exported{Since: since, Until: until}
	first, last, err := x.find(ctx, stream)
	if err != nil {
		return Exported{}, err
	}
	to, err := x.head(ctx, stream, first, last)
	if err != nil {
		return Exported{}, err
	}
	e := exporter{dir: dir, rests: true}
	if err := errors.Join(e.run(ctx, stream, first, to), e.closeFile()); err != nil {
		return Exported{}, err
	}
	x.Range, x.GivenUp = e.r, e.copied > 0
	keys, err := readRotations(filepath.Join(filepath.Dir(filepath.Dir(stream)), KeysFile))
	if err == nil && keys != nil {
		err = writeNew(filepath.Join(dir, KeysFile), keys, 0o640)
	}
	return x, err
}

// find returns the first and the last index of a record of that time.
func (x *Exported) find(ctx context.Context, stream string) (first, last uint64, err error) {
	_, err = NewReader(stream).Select(&Selection{Since: x.Since, Until: x.Until}, func(r *Record) error {
		if x.Records == 0 {
			first = r.Index
		}
		last = r.Index
		x.Records++
		return ctx.Err()
	})
	if err == nil && x.Records == 0 {
		err = errors.New("there is no record of that time")
	}
	return first, last, err
}

// headWait is how long a head is waited for: somewhat more than it takes until one
// is due by default.
const headWait = 15 * time.Second

// head returns the index at which the export may end: that of a head at or after
// the last record or, where none will be, of the last one before it.
func (x *Exported) head(ctx context.Context, stream string, first, last uint64) (uint64, error) {
	for begun := time.Now(); ; {
		after, found, err := firstHead(ctx, stream, last)
		if found || err != nil {
			return after, err
		}
		release, err := lockStore(filepath.Dir(stream))
		if err == nil {
			release()
		}
		if !errors.Is(err, ErrInUse) || time.Since(begun) > headWait || !pause(ctx) {
			break
		}
	}
	var before uint64
	_, err := NewReader(stream).Select(&Selection{From: first, To: last}, func(r *Record) error {
		if r.Kind == KindHead {
			before, x.Left = r.Index, 0
		} else {
			x.Left++
		}
		return ctx.Err()
	})
	x.Left++ // the last itself
	if err == nil && before == 0 {
		err = errors.New("no signed head covers any of it")
	}
	return before, err
}

// firstHead is the first one at or after an index.
func firstHead(ctx context.Context, stream string, from uint64) (index uint64, found bool, err error) {
	_, err = NewReader(stream).Select(&Selection{From: from}, func(r *Record) error {
		if r.Kind != KindHead {
			return ctx.Err()
		}
		index, found = r.Index, true
		return ErrStop
	})
	return index, found, err
}
