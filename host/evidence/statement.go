package evidence

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"
)

// StatementFile is in what ExportTime has taken where it had the host's key: what
// was asked for, and what there was of it. It is a signed note of that key over
//
//	outguard evidence export v1
//	since, until: the time that was asked for, until not included; - where there is no bound
//	made: when
//	stream 6f1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c11
//	recorded: the first index that the stream had then, and the one after its last
//	records: how many of them are of that time
//	left: of these, how many are not here, because no head had signed them yet
//	given-up: yes where retention gave up a part of that time, no
//	range: first index, index after the last, the chain before and after; - where nothing is here
//
// and the same again for each further stream, in ascending order. The exported
// range begins with the last record from before that time, and ends with a head
// from after it, where there are such: then the record itself shows that nothing at
// either end was left out, and else who exported it says so.
const StatementFile = "export.note"

const (
	statementTitle = "outguard evidence export v1"
	maxStatement   = 1 << 20 // about what a note may have

	// exportSuffix is behind a stream's name in an export of several: it is not the
	// whole of it.
	exportSuffix = ".export"
)

// Statement says what an export is of.
type Statement struct {
	Since   time.Time `json:"since,omitzero"`
	Until   time.Time `json:"until,omitzero"`
	Made    time.Time `json:"made"`
	Streams []Stated  `json:"streams"`
}

// Stated is what a statement says of one stream.
type Stated struct {
	Stream  uuid.UUID `json:"stream"`
	Begin   uint64    `json:"begin"`              // the first index that it had
	End     uint64    `json:"end"`                // index after the last
	Records uint64    `json:"records"`            // of that time
	Left    uint64    `json:"left,omitempty"`     // of them, those that no head has signed, and which are not in it
	GivenUp bool      `json:"given_up,omitempty"` // a part of that time was
	Range   *Stretch  `json:"range,omitempty"`    // nil: there is nothing
}

// Stretch is a run of records by its two ends.
type Stretch struct {
	First  uint64 `json:"first"`
	Next   uint64 `json:"next"`
	Before Hash   `json:"before"` // the chain before First
	Chain  Hash   `json:"chain"`  // and after the last
}

func (s *Statement) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nsince %s\nuntil %s\nmade %s\n", statementTitle, bound(s.Since), bound(s.Until), bound(s.Made))
	for _, st := range s.Streams {
		fmt.Fprintf(&b, "stream %s\nrecorded %d %d\nrecords %d\nleft %d\ngiven-up %s\nrange %s\n", st.Stream, st.Begin, st.End, st.Records, st.Left,
			map[bool]string{true: "yes", false: "no"}[st.GivenUp], st.Range)
	}
	return b.String()
}

func (r *Stretch) String() string {
	if r == nil {
		return "-"
	}
	return fmt.Sprintf("%d %d %s %s", r.First, r.Next, r.Before, r.Chain)
}

func bound(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// parseStatement reads exactly what text writes.
func parseStatement(text string) (*Statement, error) {
	lines := strings.Split(text, "\n")
	const head, each = 4, 6
	if len(lines) < head+each+1 || (len(lines)-head-1)%each != 0 || lines[0] != statementTitle {
		return nil, fmt.Errorf("not a text of the form %q", statementTitle)
	}
	s := &Statement{}
	var errs []error
	for i, to := range []*time.Time{&s.Since, &s.Until, &s.Made} {
		if _, value, _ := strings.Cut(lines[1+i], " "); value != "-" {
			var err error
			*to, err = time.Parse(time.RFC3339Nano, value)
			errs = append(errs, err)
		}
	}
	for at := head; at+each < len(lines); at += each {
		st, err := parseStated(lines[at : at+each])
		s.Streams, errs = append(s.Streams, st), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for i := range s.Streams[1:] {
		if s.Streams[i].Stream.String() >= s.Streams[i+1].Stream.String() {
			return nil, errors.New("streams are not in their order")
		}
	}
	if s.text() != text || s.Made.IsZero() {
		return nil, errors.New("not in its canonical form")
	}
	return s, nil
}

func parseStated(lines []string) (st Stated, err error) {
	var r Stretch
	var id, given, span, before, chain string
	for i, f := range []struct {
		format string
		to     []any
	}{
		{"stream %s", []any{&id}}, {"recorded %d %d", []any{&st.Begin, &st.End}}, {"records %d", []any{&st.Records}},
		{"left %d", []any{&st.Left}}, {"given-up %s", []any{&given}},
	} {
		if _, err := fmt.Sscanf(lines[i], f.format, f.to...); err != nil {
			return Stated{}, fmt.Errorf("%.100q: %w", lines[i], err)
		}
	}
	st.GivenUp = given == "yes"
	if st.Stream, err = uuid.Parse(id); err != nil {
		return Stated{}, err
	}
	if _, span, _ = strings.Cut(lines[5], " "); span == "-" {
		return st, nil
	}
	if _, err := fmt.Sscanf(span, "%d %d %s %s", &r.First, &r.Next, &before, &chain); err != nil {
		return Stated{}, fmt.Errorf("%.100q: %w", lines[5], err)
	}
	st.Range = &r
	return st, errors.Join(r.Before.UnmarshalText([]byte(before)), r.Chain.UnmarshalText([]byte(chain)))
}

// write signs a statement, and reads it again: what nobody could read is an error
// here.
func (s *Statement) write(dir string, key *Key) error {
	signed, err := SignNote(s.text(), key)
	if err != nil {
		return err
	}
	if err := writeNew(filepath.Join(dir, StatementFile), signed, 0o640); err != nil {
		return err
	}
	if _, err := ReadStatement(dir, key.Verifier()); err != nil {
		return fmt.Errorf("%d streams: %w", len(s.Streams), err)
	}
	return nil
}

// ReadStatement reads and verifies the statement in an export. The error wraps
// fs.ErrNotExist where there is none, ErrCorrupt where it is not what was written.
func ReadStatement(dir string, v note.Verifier) (*Statement, error) {
	path := filepath.Join(dir, StatementFile)
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxStatement {
		return nil, badStatement(fmt.Sprintf("%s of %d bytes", fi.Mode().Type(), fi.Size()))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	text, by, err := openNote(b, v)
	if err != nil {
		return nil, badStatement(err.Error())
	}
	s, err := parseStatement(text)
	if err != nil {
		return nil, badStatement(err.Error())
	}
	if end, replaced := until(v, by); replaced && s.Made.After(end) {
		return nil, badStatement(fmt.Sprintf("of %s, by a key that was replaced at %s", bound(s.Made), bound(end)))
	}
	return s, nil
}

func badStatement(reason string) error { return &CorruptError{Segment: StatementFile, Reason: reason} }

// ExportReport is what VerifyExport found.
type ExportReport struct {
	Statement *Statement    `json:"statement"`
	Streams   []ExportedTo  `json:"streams"`
	Problem   *CorruptError `json:"problem,omitempty"` // the first of the export as a whole
}

// ExportedTo is one stream of an export, verified.
type ExportedTo struct {
	Report
	Stated Stated `json:"stated"`

	// Whether the record itself shows that nothing is missing at the beginning of
	// the time that was asked for, and at its end: by a record from before it, by
	// the record's own beginning or by retention's tombstone; and by a head that was
	// signed after it. Otherwise only who exported it says so.
	Begins bool `json:"begins"`
	Ends   bool `json:"ends"`
}

// VerifyExport verifies what ExportTime has made, as a whole: each stream by
// itself, that it is the range that the statement says, with as many records of the
// time that was asked for, and that each stream is there and no other. It goes on
// after a stream that is corrupt. The error wraps fs.ErrNotExist where there is no
// statement.
func VerifyExport(ctx context.Context, dir string, v note.Verifier, progress func(stream, of int, records uint64, bytes int64)) (ExportReport, error) {
	s, err := ReadStatement(dir, v)
	if err != nil {
		r := ExportReport{}
		_ = errors.As(err, &r.Problem)
		return r, fmt.Errorf("verify %s: %w", dir, err)
	}
	r := ExportReport{Statement: s}
	errs := []error{s.strangers(dir)}
	_ = errors.As(errs[0], &r.Problem)
	for i, st := range s.Streams {
		if st.Range == nil {
			continue
		}
		x, err := s.verify(ctx, s.dir(dir, st.Stream), st, v, func(records uint64, bytes int64) {
			if progress != nil {
				progress(i+1, len(s.Streams), records, bytes)
			}
		})
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		r.Streams, errs = append(r.Streams, x), append(errs, err)
	}
	return r, errors.Join(errs...)
}

// dir is where a stream is: an export of one is the directory itself.
func (s *Statement) dir(export string, stream uuid.UUID) string {
	if len(s.Streams) == 1 {
		return export
	}
	return filepath.Join(export, stream.String()+exportSuffix)
}

// ExportDirs lists the directories of the streams in an export of several, as for
// one that has no statement.
func ExportDirs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list export: %w", err)
	}
	var dirs []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), exportSuffix)
		if _, err := uuid.Parse(name); ok && err == nil && e.IsDir() {
			dirs = append(dirs, filepath.Join(dir, e.Name()))
		}
	}
	return dirs, nil
}

// strangers looks for what the statement does not speak of in an export of several.
func (s *Statement) strangers(dir string) error {
	if len(s.Streams) == 1 {
		return nil // verifying the stream does
	}
	known := map[string]bool{StatementFile: true, KeysFile: true}
	for _, st := range s.Streams {
		known[st.Stream.String()+exportSuffix] = st.Range != nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !known[e.Name()] {
			return &CorruptError{Segment: e.Name(), Reason: "the statement does not speak of it"}
		}
	}
	return nil
}

// verify holds one stream against what is stated of it.
func (s *Statement) verify(ctx context.Context, dir string, st Stated, v note.Verifier, progress func(uint64, int64)) (ExportedTo, error) {
	x := ExportedTo{Stated: st}
	var n uint64
	var first time.Time
	r, err := verifyEach(ctx, dir, v, progress, func(rec *Record) {
		if first.IsZero() {
			first = rec.Time
		}
		if s.asked(rec.Time) {
			n++
		}
	})
	if x.Report = r; err != nil {
		return x, err
	}
	got := Stretch{r.First, r.Next, r.Before, r.Chain}
	switch {
	case r.Stream != st.Stream:
		err = &CorruptError{Segment: StatementFile, Reason: fmt.Sprintf("it speaks of stream %s, this is of %s", st.Stream, r.Stream)}
	case got != *st.Range || r.Unsigned != 0:
		err = &CorruptError{Segment: StatementFile, Reason: fmt.Sprintf("records %d to %d are here, and it says %d to %d, or another chain", got.First, got.Next, st.Range.First, st.Range.Next)}
	case n+st.Left < st.Records:
		err = &CorruptError{Segment: StatementFile, Reason: fmt.Sprintf("%d records of that time are here, and it says %d", n, st.Records-st.Left)}
	}
	if err != nil {
		_ = errors.As(err, &x.Problem)
		return x, fmt.Errorf("verify %s: %w", dir, err)
	}
	x.Begins = r.First == 0 || r.Gone != nil || !s.Since.IsZero() && first.Before(s.Since)
	x.Ends = st.Left == 0 && !s.Until.IsZero() && r.Head != nil && !r.Head.Time.Before(s.Until)
	return x, nil
}

func (s *Statement) asked(t time.Time) bool {
	return !t.Before(s.Since) && (s.Until.IsZero() || t.Before(s.Until))
}
