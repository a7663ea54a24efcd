package quixote

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// ErrJSON is for a line that is no JSON object, or one with a key twice, a NUL
// in a name, or what Unicode does not have.
var ErrJSON = errors.New("not strict JSON")

// Bounds of one line.
const (
	maxDepth   = 32
	maxMembers = 256 // of one object
)

// tree is a line of JSON: its values in the order in which they begin.
type tree struct {
	b       []byte
	at      int
	nodes   []node
	scratch []byte
}

// node is one value; what is in it comes after it, up to end.
type node struct {
	key   []byte
	text  []byte // of a string
	kind  byte   // {, [, ", or 0 for a number or a word
	end   int32
	count int32 // members
}

// parse reads a line; the first node is the object that it is.
func (t *tree) parse(line []byte) error {
	t.b, t.at, t.nodes, t.scratch = line, 0, t.nodes[:0], t.scratch[:0]
	t.blank()
	if t.peek() != '{' {
		return ErrJSON
	}
	if err := t.value(nil, maxDepth); err != nil {
		return fmt.Errorf("at byte %d: %w", t.at+1, err)
	}
	if t.blank(); t.at < len(t.b) {
		return fmt.Errorf("at byte %d: %w", t.at+1, ErrJSON)
	}
	return nil
}

func (t *tree) peek() byte {
	if t.at < len(t.b) {
		return t.b[t.at]
	}
	return 0
}

func (t *tree) blank() {
	for t.at < len(t.b) {
		switch t.b[t.at] {
		case ' ', '\t', '\r', '\n':
			t.at++
		default:
			return
		}
	}
}

func (t *tree) take(c byte) bool {
	if t.peek() != c {
		return false
	}
	t.at++
	return true
}

// value reads one value and adds its nodes.
func (t *tree) value(key []byte, depth int) error {
	i := len(t.nodes)
	t.nodes = append(t.nodes, node{key: key})
	var err error
	switch c := t.peek(); {
	case c == '{' && depth > 0:
		err = t.object(i, depth-1)
	case c == '[' && depth > 0:
		err = t.array(i, depth-1)
	case c == '"':
		t.nodes[i].kind = '"'
		t.nodes[i].text, err = t.string()
	default:
		err = t.scalar()
	}
	t.nodes[i].end = int32(len(t.nodes))
	return err
}

func (t *tree) object(i, depth int) error {
	t.nodes[i].kind = '{'
	t.at++
	if t.blank(); t.take('}') {
		return nil
	}
	for {
		t.blank()
		key, err := t.string()
		if err != nil {
			return err
		}
		if t.has(i, key) || t.nodes[i].count == maxMembers {
			return fmt.Errorf("key %.40q twice, or of too many: %w", key, ErrJSON)
		}
		t.nodes[i].count++
		if t.blank(); !t.take(':') {
			return ErrJSON
		}
		t.blank()
		if err := t.value(key, depth); err != nil {
			return err
		}
		if t.blank(); t.take('}') {
			return nil
		}
		if !t.take(',') {
			return ErrJSON
		}
	}
}

// has looks among the members so far.
func (t *tree) has(i int, key []byte) bool {
	for j := i + 1; j < len(t.nodes); j = int(t.nodes[j].end) {
		if bytes.Equal(t.nodes[j].key, key) {
			return true
		}
	}
	return false
}

func (t *tree) array(i, depth int) error {
	t.nodes[i].kind = '['
	t.at++
	if t.blank(); t.take(']') {
		return nil
	}
	for {
		t.blank()
		if err := t.value(nil, depth); err != nil {
			return err
		}
		if t.blank(); t.take(']') {
			return nil
		}
		if !t.take(',') {
			return ErrJSON
		}
	}
}

// scalar reads a number or a word; no event has one, so it is only checked.
func (t *tree) scalar() error {
	for _, word := range [...]string{"true", "false", "null"} {
		if bytes.HasPrefix(t.b[t.at:], []byte(word)) {
			t.at += len(word)
			return nil
		}
	}
	t.take('-')
	if !t.take('0') && t.decimals() == 0 {
		return ErrJSON
	}
	if t.take('.') && t.decimals() == 0 {
		return ErrJSON
	}
	if t.peek()|0x20 == 'e' {
		t.at++
		if !t.take('+') {
			t.take('-')
		}
		if t.decimals() == 0 {
			return ErrJSON
		}
	}
	return nil
}

func (t *tree) decimals() (n int) {
	for ; t.peek() >= '0' && t.peek() <= '9'; n++ {
		t.at++
	}
	return n
}

// string reads a string; what has no escapes aliases the line.
func (t *tree) string() ([]byte, error) {
	if !t.take('"') {
		return nil, ErrJSON
	}
	start, ascii := t.at, true
	for ; t.at < len(t.b); t.at++ {
		switch c := t.b[t.at]; {
		case c == '"':
			s := t.b[start:t.at]
			t.at++
			if !ascii && !utf8.Valid(s) {
				return nil, ErrJSON
			}
			return s, nil
		case c == '\\':
			return t.escaped(start)
		case c < ' ':
			return nil, ErrJSON
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return nil, ErrJSON
}

// escaped reads the rest of a string that began at start.
func (t *tree) escaped(start int) ([]byte, error) {
	from := len(t.scratch)
	t.scratch = append(t.scratch, t.b[start:t.at]...)
	for t.at < len(t.b) {
		c := t.b[t.at]
		t.at++
		switch {
		case c == '"':
			if !utf8.Valid(t.b[start:t.at]) {
				return nil, ErrJSON
			}
			return t.scratch[from:], nil
		case c < ' ':
			return nil, ErrJSON
		case c != '\\':
			t.scratch = append(t.scratch, c)
		default:
			if !t.escape() {
				return nil, ErrJSON
			}
		}
	}
	return nil, ErrJSON
}

// escape reads what follows a backslash. A NUL is in no name.
func (t *tree) escape() bool {
	c := t.peek()
	t.at++
	switch c {
	case '"', '\\', '/':
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'u':
		return t.unicode()
	default:
		return false
	}
	t.scratch = append(t.scratch, c)
	return true
}

func (t *tree) unicode() bool {
	r, ok := t.four()
	if ok && r >= 0xdc80 && r <= 0xdcff { // a byte that is no UTF-8, see AppendEvent
		t.scratch = append(t.scratch, byte(r))
		return true
	}
	if ok && utf16.IsSurrogate(r) {
		if !t.take('\\') || !t.take('u') {
			return false
		}
		low, is := t.four()
		r, ok = utf16.DecodeRune(r, low), is
		ok = ok && r != utf8.RuneError
	}
	if !ok || r == 0 {
		return false
	}
	t.scratch = utf8.AppendRune(t.scratch, r)
	return true
}

// four reads four hex digits.
func (t *tree) four() (r rune, ok bool) {
	if len(t.b)-t.at < 4 {
		return 0, false
	}
	for _, c := range t.b[t.at : t.at+4] {
		d := digit(c)
		if d > 15 {
			return 0, false
		}
		r = r<<4 | rune(d)
	}
	t.at += 4
	return r, true
}
