package evidence

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Exported is what ExportTime has taken of one stream.
type Exported struct {
	Range
	Dir   string    `json:"dir,omitempty"` // where it is; "" if there is nothing
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	Stated
}

// ExportOptions of one export; nil and zero mean the documented defaults.
type ExportOptions struct {
	Key   *Key                              // signs StatementFile; default: there is none
	Now   func() time.Time                  // default time.Now
	Began func(stream uuid.UUID, n, of int) // is told of each stream before it is read
}

// Reasons for which nothing of a stream can be exported.
var (
	errNothing = errors.New("there is no record of that time")
	errNoHead  = errors.New("no signed head covers any of it")
)

// ExportTime copies what streams of a store have from a time on and before
// another (zero: no bound) into a new directory, up to and with a signed head that
// covers the last of it, so that Verify takes it anywhere. Where there are such, it
// has one record from before that time, and ends with a head from after it. One
// stream is in the directory itself; of several each has one of its own there,
// but for those of which there is nothing of that time, where others have some.
// What retention left of a segment comes along as it is, and whole; so does the
// tombstone of what was before all of it, and KeysFile where there is one. Where a
// monitor writes, a head that is due is waited for. On an error nothing remains.
func ExportTime(ctx context.Context, streams []string, dir string, since, until time.Time, opts *ExportOptions) ([]Exported, error) {
	if opts == nil {
		opts = &ExportOptions{}
	}
	if _, err := os.Lstat(dir); err == nil {
		return nil, fmt.Errorf("export evidence: %s: %w", dir, os.ErrExist)
	}
	if (&walk{c: cursor{dir: dir}}).whole() || inStore(dir) {
		return nil, fmt.Errorf("export evidence: %s would be taken for a store's whole record: choose another name, elsewhere", dir)
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-*")
	if err != nil {
		return nil, fmt.Errorf("export evidence: %w", err)
	}
	all, err := exportAll(ctx, slices.Compact(slices.Sorted(slices.Values(streams))), temp, since, until, opts)
	if err == nil {
		err = errors.Join(os.Chmod(temp, 0o750), syncDir(temp), os.Rename(temp, dir), syncDir(filepath.Dir(dir)))
	}
	if err != nil {
		return nil, fmt.Errorf("export evidence: %w", errors.Join(err, os.RemoveAll(temp)))
	}
	for i := range all {
		if all[i].Dir != "" {
			all[i].Dir = filepath.Join(dir, strings.TrimPrefix(all[i].Dir, temp))
		}
	}
	return all, nil
}

func exportAll(ctx context.Context, streams []string, dir string, since, until time.Time, opts *ExportOptions) ([]Exported, error) {
	s := &Statement{Since: since, Until: until, Made: orNow(opts.Now)().UTC().Round(0)}
	var all []Exported
	var none error
	found := false
	for i, stream := range streams {
		id, err := uuid.Parse(filepath.Base(stream))
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", stream, err)
		}
		if opts.Began != nil {
			opts.Began(id, i+1, len(streams))
		}
		to := dir
		if len(streams) > 1 {
			to = filepath.Join(dir, id.String()+exportSuffix)
		}
		x, err := exportTime(ctx, stream, to, since, until)
		x.Stream = id
		switch {
		case errors.Is(err, errNothing) || errors.Is(err, errNoHead):
			none = cmp.Or(none, err)
		case err != nil:
			return nil, fmt.Errorf("%s: %w", id, err)
		default:
			found = true
		}
		all, s.Streams = append(all, x), append(s.Streams, x.Stated)
	}
	if !found {
		return nil, none
	}
	keys, err := readRotations(filepath.Join(filepath.Dir(filepath.Dir(streams[0])), KeysFile))
	if err == nil && keys != nil {
		err = writeNew(filepath.Join(dir, KeysFile), keys, 0o640)
	}
	if err == nil && opts.Key != nil {
		err = s.write(dir, opts.Key)
	}
	return all, err
}

func orNow(now func() time.Time) func() time.Time {
	if now == nil {
		return time.Now
	}
	return now
}

func exportTime(ctx context.Context, stream, dir string, since, until time.Time) (x Exported, err error) {
	x = Exported{Since: since, Until: until}
	if x.Begin, x.End, err = NewReader(stream).Bounds(); err != nil {
		return x, err
	}
	first, last, err := x.find(ctx, stream)
	if err != nil {
		return x, err
	}
	to, err := x.head(ctx, stream, first, last)
	if err != nil {
		return x, err
	}
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return x, err
	}
	e := exporter{dir: dir, rests: true}
	if err := errors.Join(e.run(ctx, stream, max(first, x.Begin+1)-1, to), e.closeFile()); err != nil {
		return x, err
	}
	x.Range, x.GivenUp, x.Dir = e.r, e.copied > 0, dir
	x.Stated.Range = &Stretch{e.r.First, e.r.Next, e.r.Before, e.last}
	return x, x.tombstone(stream, dir)
}

// tombstone takes along what stands for all that was before, where the export
// begins with it.
func (x *Exported) tombstone(stream, dir string) error {
	name := goneName(x.First)
	b, err := os.ReadFile(filepath.Join(stream, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	x.GivenUp = true
	return writeNew(filepath.Join(dir, name), b, 0o640)
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
		err = errNothing
	}
	return first, last, err
}

// headWait is how long a head is waited for: somewhat more than it takes until one
// is due by default.
const headWait = 15 * time.Second

// head returns the index at which the export may end: that of a head at or after
// the last record, from after that time where there is one, or, where none will be,
// of the last one before it.
func (x *Exported) head(ctx context.Context, stream string, first, last uint64) (uint64, error) {
	for begun := time.Now(); ; {
		after, found, err := firstHead(ctx, stream, last, x.Until)
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
		x.Left, err = x.Records, errNoHead
	}
	return before, err
}

// firstHead is the first one at or after an index and a time or, where there is
// none, the first at or after the index.
func firstHead(ctx context.Context, stream string, from uint64, at time.Time) (index uint64, found bool, err error) {
	_, err = NewReader(stream).Select(&Selection{From: from}, func(r *Record) error {
		if r.Kind != KindHead {
			return ctx.Err()
		}
		if !found {
			index, found = r.Index, true
		}
		if r.Time.Before(at) {
			return ctx.Err()
		}
		index = r.Index
		return ErrStop
	})
	return index, found, err
}
