package tsem

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A model file is text, one command a line, in this order:
//
//	outguard-model 1
//	mapping quixote
//	version 3
//	base HEX                          unless it is zero
//	aggregate HEX                     if there is one
//	pseudonym HEX                     each, ascending
//	point HEX valid|violation COUNT   each, in the order in which they came
//	point HEX valid COUNT RECEIVED BOOT_NS PID "PROGRAM" "WHAT"
//	sealed                            if it is
//	end
//
// RECEIVED is nanoseconds since 1970; PROGRAM and WHAT are quoted as Go quotes
// in ASCII. What is there twice, out of order or more than this is refused.
// What follows `end` is not the model's: a signature may.
const (
	modelMagic = "outguard-model 1"

	// MaxModelFile bounds a model file, in bytes.
	MaxModelFile = 240 << 20
)

// ErrModelFile is for a file that is no model.
var ErrModelFile = errors.New("not a line of a model file")

// AppendText appends the model as a file.
func (m *Model) AppendText(b []byte) []byte {
	b = append(b, modelMagic+"\nmapping "...)
	b = append(b, m.mapping.String()...)
	b = strconv.AppendUint(append(b, "\nversion "...), m.version, 10)
	b = append(b, '\n')
	if m.base != (ID{}) {
		b = appendCommand(b, "base ", &m.base)
	}
	if platform, has := m.Platform(); has {
		b = appendCommand(b, "aggregate ", &platform)
	}
	for _, p := range m.Pseudonyms() {
		b = appendCommand(b, "pseudonym ", &p)
	}
	for i := range m.points.all {
		b = m.appendPoint(b, &m.points.all[i])
	}
	if m.sealed {
		b = append(b, "sealed\n"...)
	}
	return append(b, "end\n"...)
}

func appendCommand(b []byte, command string, v *ID) []byte {
	return append(hex.AppendEncode(append(b, command...), v[:]), '\n')
}

func (m *Model) appendPoint(b []byte, p *Point) []byte {
	b = hex.AppendEncode(append(b, "point "...), p.Value[:])
	if p.Valid {
		b = append(b, " valid "...)
	} else {
		b = append(b, " violation "...)
	}
	b = strconv.AppendUint(b, p.Count, 10)
	if n, has := m.Note(p); has {
		b = strconv.AppendInt(append(b, ' '), n.Received.UnixNano(), 10)
		b = strconv.AppendUint(append(b, ' '), n.BootNs, 10)
		b = strconv.AppendUint(append(b, ' '), uint64(n.PID), 10)
		b = strconv.AppendQuoteToASCII(append(b, ' '), n.Program)
		b = strconv.AppendQuoteToASCII(append(b, ' '), n.What)
	}
	return append(b, '\n')
}

// ParseModel reads the model file at the start of b and returns what follows
// it. limit bounds its points, 0 means DefaultMaxPoints.
func ParseModel(b []byte, limit int) (m *Model, rest []byte, err error) {
	if len(b) > MaxModelFile {
		return nil, nil, fmt.Errorf("model of %d bytes, limit %d: %w", len(b), MaxModelFile, ErrModelFile)
	}
	p := &modelParser{model: NewModel(limit)}
	for n := 1; ; n++ {
		line, after, found := bytes.Cut(b, []byte("\n"))
		if !found {
			return nil, nil, fmt.Errorf("model line %d: no `end`: %w", n, ErrModelFile)
		}
		b = after
		if err := p.line(string(line)); err != nil {
			return nil, nil, fmt.Errorf("model line %d: %w", n, err)
		}
		if p.state == stateEnd {
			return p.model, b, nil
		}
	}
}

// modelParser takes a file line after line. state is how far it is: commands
// come in order.
type modelParser struct {
	model *Model
	state modelState
	last  ID // pseudonym
}

type modelState uint8

const (
	stateStart modelState = iota
	stateMagic
	stateMapping
	stateVersion
	stateBase
	stateAggregate
	statePseudonym
	statePoint
	stateSealed
	stateEnd
)

// modelCommands are the commands in their order. some may be left out, more may
// come again.
var modelCommands = []struct {
	name       string
	some, more bool
	load       func(p *modelParser, argument string) error
}{
	stateMagic:     {name: modelMagic, load: (*modelParser).mark},
	stateMapping:   {name: "mapping", load: (*modelParser).mapping},
	stateVersion:   {name: "version", load: (*modelParser).version},
	stateBase:      {name: "base", some: true, load: (*modelParser).base},
	stateAggregate: {name: "aggregate", some: true, load: (*modelParser).aggregate},
	statePseudonym: {name: "pseudonym", some: true, more: true, load: (*modelParser).pseudonym},
	statePoint:     {name: "point", some: true, more: true, load: (*modelParser).point},
	stateSealed:    {name: "sealed", some: true, load: (*modelParser).sealed},
	stateEnd:       {name: "end", load: (*modelParser).mark},
}

func (p *modelParser) line(line string) error {
	for s := p.state; int(s) < len(modelCommands); s++ {
		c := &modelCommands[s]
		if s == p.state && !c.more {
			continue
		}
		word, argument, has := strings.Cut(line, " ")
		if c.name == modelMagic {
			word, argument, has = line, "", false
		}
		if word == c.name {
			if p.state = s; has == (argument == "") {
				return fmt.Errorf("%s: %w", word, ErrModelFile)
			}
			return c.load(p, argument)
		}
		if !c.some {
			break
		}
	}
	return fmt.Errorf("%.40q: %w", line, ErrModelFile)
}

func (p *modelParser) mark(argument string) error {
	if argument != "" {
		return ErrModelFile
	}
	return nil
}

func (p *modelParser) sealed(argument string) error {
	p.model.sealed = true
	return p.mark(argument)
}

func (p *modelParser) mapping(argument string) (err error) {
	p.model.mapping, err = ParseMapping(argument)
	return err
}

func (p *modelParser) version(argument string) (err error) {
	p.model.version, err = decimal(argument, 64)
	return err
}

func (p *modelParser) base(argument string) error {
	v, err := parseID(argument)
	if err == nil && v == (ID{}) {
		err = fmt.Errorf("a base of zero is left out: %w", ErrModelFile)
	}
	p.model.SetBase(v)
	return err
}

func (p *modelParser) aggregate(argument string) error {
	v, err := parseID(argument)
	p.model.SetAggregate(v)
	return err
}

func (p *modelParser) pseudonym(argument string) error {
	v, err := parseID(argument)
	switch {
	case err != nil:
		return err
	case len(p.model.pseudonyms) > 0 && bytes.Compare(v[:], p.last[:]) <= 0:
		return fmt.Errorf("pseudonyms ascend: %w", ErrModelFile)
	}
	p.last = v
	return p.model.AddPseudonym(v)
}

func (p *modelParser) point(argument string) error {
	words := strings.SplitN(argument, " ", 7)
	if len(words) != 3 && len(words) != 7 {
		return fmt.Errorf("point of %d words: %w", len(words), ErrModelFile)
	}
	v := Point{Valid: words[1] == "valid"}
	var err error
	if v.Value, err = parseID(words[0]); err != nil {
		return fmt.Errorf("point: %w", err)
	}
	if !v.Valid && words[1] != "violation" {
		return fmt.Errorf("point that is %.20q: %w", words[1], ErrModelFile)
	}
	if v.Count, err = decimal(words[2], 64); err != nil {
		return fmt.Errorf("count: %w", err)
	}
	if err := p.model.restore(v); err != nil || len(words) == 3 {
		return err
	}
	n, err := parseNote(words[3:])
	if err != nil {
		return fmt.Errorf("point: %w", err)
	}
	p.model.Annotate(&n)
	return nil
}

// restore adds a point as it was, and extends the measurement by it.
func (m *Model) restore(p Point) error {
	if _, has := m.points.find(&p.Value); has {
		return fmt.Errorf("point is there already: %w", ErrModelFile)
	}
	if len(m.points.all) >= m.limit {
		return fmt.Errorf("point: %w", ErrFull)
	}
	m.measurement = m.extend(m.measurement, p.Value)
	m.add(p)
	if p.Valid {
		m.trajectory++
	} else {
		m.forensics++
	}
	return nil
}

// parseNote reads RECEIVED, BOOT_NS, PID and both quoted strings.
func parseNote(words []string) (n Note, err error) {
	received, err := strconv.ParseInt(words[0], 10, 64)
	if err != nil || strconv.FormatInt(received, 10) != words[0] {
		return n, fmt.Errorf("time %.30q: %w", words[0], ErrModelFile)
	}
	n.Received = time.Unix(0, received)
	if n.BootNs, err = decimal(words[1], 64); err != nil {
		return n, err
	}
	pid, err := decimal(words[2], 32)
	if err != nil {
		return n, err
	}
	n.PID = uint32(pid)
	text := words[3]
	for i, to := range [...]*string{&n.Program, &n.What} {
		quoted, err := strconv.QuotedPrefix(text)
		if err != nil {
			return n, fmt.Errorf("quoted text: %w", ErrModelFile)
		}
		if *to, err = strconv.Unquote(quoted); err != nil || strconv.QuoteToASCII(*to) != quoted || len(*to) > maxNoteText {
			return n, fmt.Errorf("quoted text: %w", ErrModelFile)
		}
		text = text[len(quoted):]
		if i == 0 && !strings.HasPrefix(text, " ") || i == 1 && text != "" {
			return n, fmt.Errorf("quoted text: %w", ErrModelFile)
		}
		text = strings.TrimPrefix(text, " ")
	}
	return n, nil
}

// decimal reads a number as it is written, and no other way.
func decimal(s string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("number %.30q: %w", s, ErrModelFile)
	}
	return n, nil
}

// parseID reads 32 bytes of lower case hex.
func parseID(s string) (v ID, err error) {
	if len(s) != 2*len(v) || strings.ToLower(s) != s {
		return v, fmt.Errorf("hex of %d digits: %w", len(s), ErrModelFile)
	}
	if _, err = hex.Decode(v[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("hex: %w", ErrModelFile)
	}
	return v, nil
}
