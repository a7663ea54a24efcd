package quixote

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/outguard/outguard/plugins/tsem"
)

// Dialect says how a line is read.
type Dialect uint8

const (
	Text   Dialect = 0 // what Quixote accepts, with the same meaning
	Strict Dialect = 1 // JSON: nothing twice, nothing left over, names as they are
)

// ParseDialect finds the dialect of that name.
func ParseDialect(name string) (Dialect, error) {
	switch name {
	case "quixote":
		return Text, nil
	case "json":
		return Strict, nil
	}
	return 0, fmt.Errorf("dialect %q: quixote or json", name)
}

// MaxLine bounds a line, in bytes. No kernel writes one that is as long.
const MaxLine = 16 << 20

// ErrTooLong is for a longer one.
var ErrTooLong = errors.New("line too long")

// Parser reads exported events, one at a time. It is not safe for concurrent
// use.
type Parser struct {
	dialect Dialect
	text    text
	tree    tree
	taskID  []byte
	event   Event

	coeText []byte // of the last COE, which the next event's often is
	coe     tsem.COE
}

// Event is one exported event. Process, context and the like are in no model
// and not read.
type Event struct {
	tsem.Event
	PID        uint32 // 0: not told
	TaskNumber uint64 // 0: not told
}

// NewParser makes a Parser.
func NewParser(d Dialect) *Parser { return &Parser{dialect: d} }

// Parse reads the event of a line, without its newline. The event aliases line
// and is valid until the next call.
func (p *Parser) Parse(line []byte) (*Event, error) {
	if len(line) > MaxLine {
		return nil, ErrTooLong
	}
	p.event = Event{}
	parse := p.parseText
	if p.dialect == Strict {
		parse = p.parseStrict
	}
	if err := parse(line); err != nil {
		return nil, err
	}
	return &p.event, nil
}

func (p *Parser) parseText(line []byte) error {
	line, err := frame(line)
	if err != nil {
		return err
	}
	whole := p.text.scan(line)
	head, err := whole.extract("event")
	if err != nil {
		return err
	}
	var r reading
	p.head(&r, head)
	coe, err := whole.extract("COE")
	r.fail(err)
	if p.textCOE(&r, coe); r.err != nil {
		return fmt.Errorf("COE: %w", r.err)
	}
	if p.textBody(&r, whole); r.err != nil {
		return fmt.Errorf("%s: %w", p.event.Name, r.err)
	}
	return nil
}

// textCOE reads a COE, unless it is the text that was read last.
func (p *Parser) textCOE(r *reading, f field) {
	if r.err != nil {
		return
	}
	text := f.t.b[f.start:f.end]
	if bytes.Equal(text, p.coeText) {
		p.event.COE = p.coe
		return
	}
	if readCOE(r, f, &p.event.COE); r.err == nil {
		p.coeText, p.coe = append(p.coeText[:0], text...), p.event.COE
	}
}

func (p *Parser) head(r *reading, head field) {
	p.kind(r, text1(r, head, "type"))
	p.task(r, text1(r, head, "task_id"))
	if r.err != nil || !head.has("pid") {
		return // and the task number is not looked for either
	}
	if p.event.PID = u32(r, head, "pid"); r.err == nil && head.has("tnum") {
		p.event.TaskNumber = number(r, head, "tnum", 1<<64-1)
	}
}

func (p *Parser) kind(r *reading, name []byte) {
	if n := typeNumbers[string(name)]; n > 0 {
		p.event.Name = types[n]
		return
	}
	r.fail(fmt.Errorf("event type %.64q: not one of the %d that there are", name, len(types)-1))
}

// task decodes a task_id, which is of any length here.
func (p *Parser) task(r *reading, text []byte) {
	if r.err != nil {
		return
	}
	p.taskID = append(p.taskID[:0], text...)[:len(text)/2]
	if len(text) == 0 || !unhex(p.taskID, text) {
		r.err = fmt.Errorf("task_id: %w", ErrHex)
	}
	p.event.TaskID = p.taskID
}

// textBody reads what counts in an event of that name. Structures are looked
// for where Quixote does: `file` in all of the line, `dev` in all of the file.
func (p *Parser) textBody(r *reading, whole field) {
	e := &p.event
	if !hasBody(e.Name) {
		return
	}
	body, err := whole.extract(e.Name)
	if err != nil {
		r.fail(err)
		return
	}
	switch e.Name {
	case "file_open":
		p.textFile(r, whole)
	case "mmap_file":
		e.Prot, e.MapFlags = u32(r, body, "prot"), u32(r, body, "flags")
		if e.HasFile = body.has("file"); e.HasFile {
			p.textFile(r, whole)
		}
	case "socket_create":
		readSocket(r, body, &e.Socket)
		e.Socket.Kernel = u32(r, body, "kern")
	case "socket_connect", "socket_bind", "socket_accept":
		p.textSocket(r, body)
	case "task_kill":
		readKill(r, body, &e.Kill)
	}
}

// hasBody reports whether an event's body has a part in its point.
func hasBody(name string) bool {
	switch name {
	case "file_open", "mmap_file", "socket_create", "socket_connect", "socket_bind", "socket_accept", "task_kill":
		return true
	}
	return false
}

func (p *Parser) textFile(r *reading, whole field) {
	file, err := whole.extract("file")
	r.fail(err)
	if r.err != nil {
		return
	}
	inode, err := file.extract("inode")
	r.fail(err)
	path, err := file.extract("path")
	r.fail(err)
	if readFile(r, file, inode, path, &p.event.File); r.err != nil || !path.has("dev") {
		return
	}
	dev, err := file.extract("dev")
	r.fail(err)
	readDevice(r, dev)
}

func (p *Parser) textSocket(r *reading, body field) {
	e := &p.event
	sock, err := body.extract("sock")
	r.fail(err)
	readSocket(r, sock, &e.Socket)
	digest(r, sock, "owner", e.Socket.Owner[:])
	_, err = body.extract("addr")
	r.fail(err)
	if r.err != nil {
		return
	}
	addr, err := body.extract(addressKey(e.Socket.Family))
	r.fail(err)
	readAddress(r, addr, e.Socket.Family, e.Name == "socket_accept", &e.Address)
}

// Aggregate reads a line that sets the platform's aggregate; is is false where
// a line exports something else.
func (p *Parser) Aggregate(line []byte) (aggregate tsem.ID, is bool, err error) {
	if !bytes.Contains(line, aggregateWord) || len(line) > MaxLine {
		return tsem.ID{}, false, nil
	}
	find := p.textAggregate
	if p.dialect == Strict {
		find = p.strictAggregate
	}
	value, is := find(line)
	if !is {
		return tsem.ID{}, false, nil
	}
	if n := hex.DecodedLen(len(value)); n != len(aggregate) || !unhex(aggregate[:], value) {
		return tsem.ID{}, true, fmt.Errorf("aggregate: %w", ErrHex)
	}
	return aggregate, true, nil
}

var aggregateWord = []byte(`"aggregate"`)

func (p *Parser) textAggregate(line []byte) (value []byte, is bool) {
	line, err := frame(line)
	if err != nil {
		return nil, false
	}
	whole := p.text.scan(line)
	export, err := whole.extract("export")
	if err != nil {
		return nil, false
	}
	if kind, err := export.text("type"); err != nil || string(kind) != "aggregate" {
		return nil, false
	}
	body, err := whole.extract("aggregate")
	if err != nil {
		return nil, true
	}
	value, _ = body.text("value")
	return value, true
}

// Process is the name of the process whose event Parse has read, "" where it is
// not told. It is in no model.
func (p *Parser) Process() string {
	if p.dialect == Strict {
		head, err := (member{&p.tree, 0}).object("event")
		if err != nil {
			return ""
		}
		name, _ := head.text("process")
		return string(name)
	}
	head, err := (field{t: &p.text, end: int32(len(p.text.b))}).extract("event")
	if err != nil {
		return ""
	}
	name, _ := head.text("process")
	return string(name)
}
