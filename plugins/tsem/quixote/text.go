package quixote

import (
	"bytes"
	"errors"
	"fmt"
)

// Errors of a line.
var (
	ErrMissing = errors.New("missing")
	ErrOpen    = errors.New("not closed")
	ErrRange   = errors.New("out of range")
	ErrHex     = errors.New("not so many bytes in hex")
	ErrFrame   = errors.New("does not begin with { and end with }")
)

// text is a line as Quixote sees it: keys and braces wherever they stand,
// inside of strings as well. One pass finds them all; the searches that
// Quixote does one after the other are then searches among few.
type text struct {
	b       []byte
	keys    []mark
	braces  []brace
	scratch []byte // of values that had escapes
	plain   bool   // there is no backslash in b
}

// mark is a `": `, which ends a key.
type mark struct {
	at    int32 // of the quote
	level int32 // braces open before it, over all the line
	brace int32 // index of the next brace
}

type brace struct {
	at    int32
	delta int32 // 1 opens, -1 closes
}

// field is a structure of the line from its { to its }, or the line.
type field struct {
	t          *text
	start, end int32
	first      int // the first mark in it
	level      int32
}

// class finds the bytes that scan looks at.
var class = [256]bool{'{': true, '}': true, ':': true}

func (t *text) scan(line []byte) field {
	t.b, t.keys, t.braces, t.scratch = line, t.keys[:0], t.braces[:0], t.scratch[:0]
	t.plain = bytes.IndexByte(line, '\\') < 0
	level := int32(0)
	for i, c := range line {
		if !class[c] {
			continue
		}
		switch c {
		case '{':
			level++
			t.braces = append(t.braces, brace{int32(i), 1})
		case '}':
			level--
			t.braces = append(t.braces, brace{int32(i), -1})
		default:
			if i > 0 && line[i-1] == '"' && i+1 < len(line) && line[i+1] == ' ' {
				t.keys = append(t.keys, mark{int32(i - 1), level, int32(len(t.braces))})
			}
		}
	}
	return field{t: t, end: int32(len(line))}
}

// ends reports whether the key that ends at m, and begins in f, is name.
func (f *field) ends(m *mark, name string) bool {
	start := m.at - int32(len(name))
	return start > f.start && f.t.b[start-1] == '"' && string(f.t.b[start:m.at]) == name
}

// extract finds the first structure of that name, at any depth. It ends where
// as many braces were closed as opened, and something has to follow it.
func (f field) extract(name string) (field, error) {
	t := f.t
	for i := f.first; i < len(t.keys); i++ {
		m := &t.keys[i]
		if m.at+3 >= f.end {
			break
		}
		if t.b[m.at+3] == '{' && f.ends(m, name) {
			end, ok := t.close(int(m.brace), f.end)
			if !ok {
				return field{}, fmt.Errorf("structure %s: %w", name, ErrOpen)
			}
			return field{t, m.at + 3, end, i + 1, m.level + 1}, nil
		}
	}
	return field{}, fmt.Errorf("structure %s: %w", name, ErrMissing)
}

// close finds the end of the structure that the brace opens.
func (t *text) close(open int, limit int32) (end int32, ok bool) {
	level := int32(1)
	for _, b := range t.braces[open+1:] {
		if b.at >= limit-1 {
			break // what ends the text ends nothing in it
		}
		if level += b.delta; level == 0 {
			return b.at + 1, true
		}
	}
	return 0, false
}

// find returns where the value of a key of the structure itself begins. Its
// first quote, or brace, is behind it.
func (f field) find(key string) (value int32, ok bool) {
	t := f.t
	for i := f.first; i < len(t.keys); i++ {
		m := &t.keys[i]
		if m.at+3 >= f.end {
			break
		}
		if m.level > f.level || !f.ends(m, key) {
			continue
		}
		c := t.b[m.at+3]
		return m.at + 4, c == '"' || c == '{'
	}
	return 0, false
}

func (f field) has(key string) bool {
	_, ok := f.find(key)
	return ok
}

// text is a key's value, up to the first quote that has no backslash in front
// of it. An empty one is a quote: Quixote copies one byte at least.
func (f field) text(key string) ([]byte, error) {
	start, ok := f.find(key)
	if !ok {
		return nil, fmt.Errorf("key %s: %w", key, ErrMissing)
	}
	b := f.t.b[:f.end]
	for end := start; ; end++ {
		n := bytes.IndexByte(b[end:], '"')
		if n < 0 {
			return nil, fmt.Errorf("value of %s: %w", key, ErrOpen)
		}
		if end += int32(n); b[end-1] != '\\' {
			return f.t.value(b[start:max(end, start+1)]), nil
		}
	}
}

// value takes the backslashes out.
func (t *text) value(b []byte) []byte {
	if t.plain || bytes.IndexByte(b, '\\') < 0 {
		return b
	}
	from := len(t.scratch)
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' {
			i++
		}
		t.scratch = append(t.scratch, b[i])
	}
	return t.scratch[from:]
}

// number is a value as C's strtoll reads it, two's complement.
func (f field) number(key string) (uint64, error) {
	b, err := f.text(key)
	if err != nil {
		return 0, err
	}
	n, ok := strtoll(b)
	if !ok {
		return 0, fmt.Errorf("number %s: %w", key, ErrRange)
	}
	return uint64(n), nil
}

// strtoll is C's, base 0: blanks, a sign, 0x or 0 in front, then as many
// digits as there are. What is no number is 0. ok is false where C sets ERANGE.
func strtoll(b []byte) (n int64, ok bool) {
	for len(b) > 0 && (b[0] == ' ' || b[0] >= '\t' && b[0] <= '\r') {
		b = b[1:]
	}
	negative := false
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		negative, b = b[0] == '-', b[1:]
	}
	base := uint64(10)
	switch {
	case len(b) > 2 && b[0] == '0' && b[1]|0x20 == 'x' && digit(b[2]) < 16:
		base, b = 16, b[2:]
	case len(b) > 0 && b[0] == '0':
		base = 8
	}
	limit := uint64(1<<63 - 1)
	if negative {
		limit++
	}
	u := uint64(0)
	for _, c := range b {
		d := digit(c)
		if d >= base {
			break
		}
		if u > (limit-d)/base {
			return 0, false
		}
		u = u*base + d
	}
	if negative {
		u = -u
	}
	return int64(u), true
}

// digit is the value of a digit, more than any base where it is none.
func digit(c byte) uint64 { return uint64(digits[c]) }

var digits = func() (all [256]uint8) {
	for i := range all {
		all[i] = 0xff
	}
	for i, c := range "0123456789abcdef" {
		all[c] = uint8(i)
	}
	for i, c := range "ABCDEF" {
		all[c] = uint8(10 + i)
	}
	return all
}()

// frame is the line as a C string, if it can be an event at all.
func frame(line []byte) ([]byte, error) {
	if nul := bytes.IndexByte(line, 0); nul >= 0 {
		line = line[:nul]
	}
	if len(line) == 0 || line[0] != '{' || line[len(line)-1] != '}' {
		return nil, ErrFrame
	}
	return line, nil
}
