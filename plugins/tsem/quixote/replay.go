package quixote

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/outguard/outguard/plugins/tsem"
)

// Measure writes what each line of r measures to, a JSON object a line and in
// order. A line that is no event has an error there; Measure's own errors are
// those of reading and writing.
func Measure(w io.Writer, r io.Reader, d Dialect) error {
	out := bufio.NewWriterSize(w, 64<<10)
	lines, p, mapper := NewLines(r), NewParser(d), tsem.NewMapper()
	var b []byte
	for {
		if lines.Waits() {
			if err := flush(out); err != nil {
				return err
			}
		}
		line, err := lines.Next()
		if errors.Is(err, io.EOF) {
			return flush(out)
		}
		if err != nil {
			return errors.Join(err, flush(out))
		}
		b = appendMeasured(b[:0], p, mapper, line)
		if _, err := out.Write(b); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
}

func flush(w *bufio.Writer) error {
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

func appendMeasured(b []byte, p *Parser, mapper *tsem.Mapper, line []byte) []byte {
	e, err := p.Parse(line)
	if err != nil {
		return appendFailed(b, err)
	}
	c, err := mapper.Map(&e.Event)
	if err != nil {
		return appendFailed(b, err)
	}
	b = append(append(append(b, `{"ok": true, "type": "`...), e.Name...), `", "pid": `...)
	b = strconv.AppendUint(b, uint64(e.PID), 10)
	b = strconv.AppendUint(append(b, `, "tnum": `...), e.TaskNumber, 10)
	b = appendHex(b, "coe", c.COE)
	b = appendHex(b, "cell", c.CELL)
	b = appendHex(b, "point", c.Point)
	b = append(b, `, "pseudonym": "`...)
	if e.Name == "file_open" || e.HasFile {
		pseudonym := tsem.Pseudonym(e.File.Path)
		b = hex.AppendEncode(b, pseudonym[:])
	}
	return append(b, "\"}\n"...)
}

func appendFailed(b []byte, err error) []byte {
	text, _ := json.Marshal(err.Error())
	return append(append(append(b, `{"ok": false, "error": `...), text...), "}\n"...)
}

func appendHex(b []byte, key string, v tsem.ID) []byte {
	b = append(append(append(b, `, "`...), key...), `": "`...)
	return append(hex.AppendEncode(b, v[:]), '"')
}

// ReplayOptions are what a replay begins with.
type ReplayOptions struct {
	Dialect   Dialect
	Model     io.Reader // a model file; nil: an empty model
	Load      LoadOptions
	Aggregate *tsem.ID // set after the model was loaded
	SealAfter int      // events; negative: never
	Brief     bool     // no record for each event
	Loaded    func(*Loaded)
}

// ErrModel is for a model that cannot be loaded. The init record says so as
// well.
var ErrModel = errors.New("model not loaded")

// replay is one replay under way.
type replay struct {
	out    *bufio.Writer
	o      *ReplayOptions
	parser *Parser
	mapper *tsem.Mapper
	model  *tsem.Model
	ended  bool
	buf    []byte
	n      int
}

// Replay judges the events of r, and writes its records as JSON objects, one a
// line: init, one event for each line, final.
func Replay(w io.Writer, r io.Reader, o *ReplayOptions) error {
	p := &replay{
		out: bufio.NewWriterSize(w, 64<<10), o: o, ended: true,
		parser: NewParser(o.Dialect), mapper: tsem.NewMapper(), model: tsem.NewModel(o.Load.MaxPoints),
	}
	if err := p.init(); err != nil {
		return errors.Join(err, flush(p.out))
	}
	if err := p.run(NewLines(r)); err != nil {
		return errors.Join(err, flush(p.out))
	}
	p.final()
	return flush(p.out)
}

func (p *replay) init() error {
	b := append(p.buf[:0], `{"rec": "init", "model_loaded": `...)
	if p.o.Model == nil {
		b = append(b, "null"...)
	} else {
		load := p.o.Load
		load.Unended = true
		loaded, err := LoadModel(p.o.Model, &load)
		if err != nil {
			_, _ = p.out.Write(append(b, "false}\n"...))
			return fmt.Errorf("%w: %w", ErrModel, err)
		}
		p.model, p.ended = loaded.Model, loaded.Ended
		if p.o.Loaded != nil {
			p.o.Loaded(loaded)
		}
		b = append(b, "true"...)
	}
	if a := p.o.Aggregate; a != nil {
		p.model.SetAggregate(*a)
		b = append(appendHex(b, "aggregate_in", *a), `, "set_aggregate": true`...)
	}
	b = appendHex(b, "measurement", p.model.Measurement())
	return p.write(append(b, "}\n"...))
}

func (p *replay) write(b []byte) error {
	p.buf = b
	if _, err := p.out.Write(b); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// run takes the lines. A model whose file had no end takes no event: the first
// one is the last.
func (p *replay) run(lines *Lines) error {
	for {
		if lines.Waits() {
			if err := flush(p.out); err != nil {
				return err
			}
		}
		line, err := lines.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if a, is, err := p.parser.Aggregate(line); is && err == nil {
			p.model.SetAggregate(a)
			continue
		}
		taken, more := p.event(line)
		if p.n++; !p.o.Brief || !taken {
			if err := p.write(p.buf); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
	}
}

// event judges a line and leaves its record in buf.
func (p *replay) event(line []byte) (taken, more bool) {
	if p.n == p.o.SealAfter {
		p.model.Seal()
	}
	b := append(p.buf[:0], `{"rec": "event", "n": `...)
	p.buf = strconv.AppendInt(b, int64(p.n), 10)
	e, err := p.parser.Parse(line)
	if err != nil {
		return p.refuse(), true
	}
	if !p.ended {
		return p.refuse(), false
	}
	p.model.Level(&e.Event)
	c, err := p.mapper.Map(&e.Event)
	if err != nil {
		return p.refuse(), true
	}
	outcome, err := p.model.Update(c.Point)
	if err != nil {
		return p.refuse(), true
	}
	if p.o.Brief {
		return true, true
	}
	b = appendHex(p.buf, "point", c.Point)
	b = appendBool(b, "added", outcome.Added)
	b = appendBool(b, "violation", outcome.Violation)
	b = appendBool(b, "sealed", p.model.Sealed())
	b = strconv.AppendUint(append(b, `, "pid": `...), uint64(e.PID), 10)
	b = strconv.AppendUint(append(b, `, "tnum": `...), e.TaskNumber, 10)
	b = appendHex(b, "measurement", p.model.Measurement())
	b = appendHex(b, "state", p.model.State())
	p.buf = append(b, "}\n"...)
	return true, true
}

func (p *replay) refuse() (taken bool) {
	p.buf = append(p.buf, ", \"update\": false}\n"...)
	return false
}

func appendBool(b []byte, key string, v bool) []byte {
	b = append(append(append(b, `, "`...), key...), `": `...)
	return strconv.AppendBool(b, v)
}

func (p *replay) final() {
	m := p.model
	b := appendHex([]byte(`{"rec": "final"`), "measurement", m.Measurement())
	b = appendHex(b, "state", m.State())
	b = strconv.AppendInt(append(b, `, "points": `...), int64(len(m.Points())), 10)
	b = strconv.AppendUint(append(b, `, "trajectory": `...), m.Trajectory(), 10)
	b = strconv.AppendUint(append(b, `, "forensics": `...), m.Forensics(), 10)
	_, _ = p.out.Write(append(b, `, "point_list": [`...))
	for i, v := range m.Points() {
		b = b[:0]
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(hex.AppendEncode(append(b, `{"point": "`...), v.Value[:]), '"')
		b = appendBool(b, "valid", v.Valid)
		b = strconv.AppendUint(append(b, `, "count": `...), v.Count, 10)
		_, _ = p.out.Write(append(b, '}'))
	}
	_, _ = p.out.Write([]byte("]}\n"))
}
