package quixote

import (
	"bufio"
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/outguard/outguard/plugins/tsem"
)

// Errors of a model file.
var (
	ErrUnknown  = errors.New("no such command")
	ErrArgument = errors.New("argument missing")
	ErrNoEnd    = errors.New("no `end`: the model would never be ready")
	ErrUnsigned = errors.New("not signed, though a key was given to verify it with")
)

// LineError says where a model file is broken.
type LineError struct {
	Line int // from 1
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("model line %d: %v", e.Line, e.Err) }

// Unwrap returns what is wrong.
func (e *LineError) Unwrap() error { return e.Err }

// LoadOptions say what of a model file is accepted.
type LoadOptions struct {
	Key       *rsa.PublicKey // verifies the signature, which has to be there; default: the key in the file does, where there is one
	Unended   bool           // accept a file without `end`
	MaxPoints int            // default tsem.DefaultMaxPoints
}

// Loaded is a model and what its file was.
type Loaded struct {
	Model  *tsem.Model
	Ended  bool
	Signed bool // by the key that was given, or else by the one in the file, which proves nothing about who signed
}

// loader takes a model file line after line.
type loader struct {
	o      LoadOptions
	out    Loaded
	signed hash.Hash // over the lines, each with a NUL behind it
	key    []byte    // as in the file: base64 of PEM
}

// LoadModel reads a model file. An error in it is a *LineError.
// Source: Quixote SecurityModel/TSEM.c, see SPEC section 6.4.
func LoadModel(r io.Reader, o *LoadOptions) (*Loaded, error) {
	l := &loader{signed: sha256.New(), out: Loaded{Ended: true}}
	if o != nil {
		l.o = *o
	}
	l.out.Model = tsem.NewModel(l.o.MaxPoints)
	lines := NewLines(r)
	for {
		line, err := lines.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = l.line(line)
		}
		if err != nil {
			return nil, &LineError{max(lines.Number(), 1), err}
		}
	}
	switch {
	case !l.out.Ended && !l.o.Unended:
		return nil, &LineError{lines.Number(), ErrNoEnd}
	case !l.out.Signed && l.o.Key != nil:
		return nil, &LineError{max(lines.Number(), 1), ErrUnsigned}
	}
	return &l.out, nil
}

// commands are matched by prefix, in this order, as Quixote does.
var commands = []struct {
	prefix string
	load   func(l *loader, argument []byte) error
}{
	{"#", (*loader).nothing},
	{"key ", (*loader).setKey},
	{"base ", (*loader).base},
	{"aggregate ", (*loader).aggregate},
	{"state ", (*loader).state},
	{"pseudonym ", (*loader).pseudonym},
	{"seal", (*loader).seal},
	{"signature ", (*loader).signature},
	{"end", (*loader).end},
}

const signatureCommand = "signature "

func (l *loader) line(line []byte) error {
	for _, c := range commands {
		argument, is := bytes.CutPrefix(line, []byte(c.prefix))
		if !is {
			continue
		}
		if c.prefix[len(c.prefix)-1] == ' ' && len(argument) == 0 {
			return fmt.Errorf("%s: %w", c.prefix[:len(c.prefix)-1], ErrArgument)
		}
		if c.prefix != signatureCommand {
			l.out.Ended = false
			l.signed.Write(line)
			l.signed.Write([]byte{0})
		}
		return c.load(l, argument)
	}
	return fmt.Errorf("%.40q: %w", line, ErrUnknown)
}

func (l *loader) nothing([]byte) error { return nil }

func (l *loader) end([]byte) error {
	l.out.Ended = true
	return nil
}

func (l *loader) seal([]byte) error {
	l.out.Model.Seal()
	return nil
}

func (l *loader) setKey(argument []byte) error {
	if l.key != nil {
		return errors.New("key: there is one already")
	}
	l.key = bytes.Clone(argument)
	return nil
}

func (l *loader) base(argument []byte) error {
	v, err := first32("base", argument)
	if err == nil {
		l.out.Model.SetBase(v)
	}
	return err
}

// aggregate has no effect once the model is sealed.
func (l *loader) aggregate(argument []byte) error {
	v, err := first32("aggregate", argument)
	if err == nil || l.out.Model.Sealed() && errors.Is(err, errFew) {
		l.out.Model.SetAggregate(v)
		return nil
	}
	return err
}

func (l *loader) state(argument []byte) error {
	var v tsem.ID
	if !unhex(v[:], argument) {
		return fmt.Errorf("state: %w", ErrHex)
	}
	return l.out.Model.AddState(v)
}

// pseudonym of another length than a digest's is none that a path could have.
func (l *loader) pseudonym(argument []byte) error {
	b := make([]byte, len(argument)/2)
	switch {
	case !unhex(b, argument):
		return fmt.Errorf("pseudonym: %w", ErrHex)
	case len(b) != len(tsem.ID{}):
		return nil
	}
	return l.out.Model.AddPseudonym(tsem.ID(b))
}

// errFew is for fewer bytes than Quixote copies.
var errFew = fmt.Errorf("%w: 32 bytes at least", ErrHex)

// first32 decodes a value of which Quixote copies 32 bytes, however many there
// are.
func first32(name string, argument []byte) (tsem.ID, error) {
	b := make([]byte, len(argument)/2)
	if !unhex(b, argument) {
		return tsem.ID{}, fmt.Errorf("%s: %w", name, ErrHex)
	}
	if len(b) < len(tsem.ID{}) {
		return tsem.ID{}, fmt.Errorf("%s: %w", name, errFew)
	}
	return tsem.ID(b[:len(tsem.ID{})]), nil
}

// WriteOptions say what of a model is written.
type WriteOptions struct {
	Violations bool // the points that came while it was sealed as well
}

// WriteModel writes a model file: loaded, it is the same model, but for counts
// and, by default, the violations.
func WriteModel(w io.Writer, m *tsem.Model, o *WriteOptions) error {
	out := bufio.NewWriter(w)
	if base := m.Base(); base != (tsem.ID{}) {
		fmt.Fprintf(out, "base %x\n", base)
	}
	if platform, has := m.Platform(); has {
		fmt.Fprintf(out, "aggregate %x\n", platform)
	}
	for _, p := range m.Pseudonyms() {
		fmt.Fprintf(out, "pseudonym %x\n", p)
	}
	for _, p := range m.Points() {
		if p.Valid || o != nil && o.Violations {
			fmt.Fprintf(out, "state %x\n", p.Value)
		}
	}
	if m.Sealed() {
		fmt.Fprintln(out, "seal")
	}
	fmt.Fprintln(out, "end")
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write model: %w", err)
	}
	return nil
}
