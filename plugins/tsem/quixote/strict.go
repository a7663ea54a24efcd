package quixote

import (
	"errors"
	"fmt"
)

// Errors of the strict dialect.
var (
	ErrNumber = errors.New("not a number as C writes one")
	ErrKind   = errors.New("a value of another kind")
)

// member is an object of a tree.
type member struct {
	t *tree
	i int
}

func (m member) find(key string) (int, bool) {
	nodes := m.t.nodes
	for j := m.i + 1; j < int(nodes[m.i].end); j = int(nodes[j].end) {
		if string(nodes[j].key) == key {
			return j, true
		}
	}
	return 0, false
}

func (m member) has(key string) bool {
	_, ok := m.find(key)
	return ok
}

// object finds the structure of that name.
func (m member) object(name string) (member, error) {
	j, ok := m.find(name)
	switch {
	case !ok:
		return member{}, fmt.Errorf("structure %s: %w", name, ErrMissing)
	case m.t.nodes[j].kind != '{':
		return member{}, fmt.Errorf("structure %s: %w", name, ErrKind)
	}
	return member{m.t, j}, nil
}

func (m member) text(key string) ([]byte, error) {
	j, ok := m.find(key)
	switch {
	case !ok:
		return nil, fmt.Errorf("key %s: %w", key, ErrMissing)
	case m.t.nodes[j].kind != '"':
		return nil, fmt.Errorf("key %s: %w", key, ErrKind)
	}
	return m.t.nodes[j].text, nil
}

// number is a value of 64 bits without a sign: 0x and hex, 0 and octal, or
// decimal.
func (m member) number(key string) (uint64, error) {
	b, err := m.text(key)
	if err != nil {
		return 0, err
	}
	n, err := parseNumber(b)
	if err != nil {
		return 0, fmt.Errorf("number %s: %w", key, err)
	}
	return n, nil
}

func parseNumber(b []byte) (n uint64, err error) {
	base := uint64(10)
	switch {
	case len(b) > 2 && b[0] == '0' && b[1]|0x20 == 'x':
		base, b = 16, b[2:]
	case len(b) > 1 && b[0] == '0':
		base, b = 8, b[1:]
	case len(b) == 0:
		return 0, ErrNumber
	}
	for _, c := range b {
		d := digit(c)
		if d >= base {
			return 0, ErrNumber
		}
		if n > (1<<64-1-d)/base {
			return 0, ErrRange
		}
		n = n*base + d
	}
	return n, nil
}

func (p *Parser) parseStrict(line []byte) error {
	if err := p.tree.parse(line); err != nil {
		return err
	}
	whole := member{&p.tree, 0}
	if err := exported(whole); err != nil {
		return err
	}
	head, err := whole.object("event")
	if err != nil {
		return err
	}
	var r reading
	p.strictHead(&r, head)
	coe, err := whole.object("COE")
	r.fail(err)
	if readCOE(&r, coe, &p.event.COE); r.err != nil {
		return fmt.Errorf("COE: %w", r.err)
	}
	body, err := whole.object(p.event.Name)
	r.fail(err)
	if p.strictBody(&r, body); r.err != nil {
		return fmt.Errorf("%s: %w", p.event.Name, r.err)
	}
	return nil
}

// exported checks what the line says that it is, if it says so.
func exported(whole member) error {
	if !whole.has("export") {
		return nil
	}
	export, err := whole.object("export")
	if err != nil {
		return err
	}
	kind, err := export.text("type")
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	switch string(kind) {
	case "event", "async_event", "log":
		return nil
	}
	return fmt.Errorf("export of type %.40q: %w", kind, ErrKind)
}

func (p *Parser) strictHead(r *reading, head member) {
	p.kind(r, text1(r, head, "type"))
	id := text1(r, head, "task_id")
	if r.err == nil && len(id) != 64 {
		r.err = fmt.Errorf("task_id: %w", ErrHex)
	}
	if p.task(r, id); r.err == nil && head.has("pid") {
		p.event.PID = u32(r, head, "pid")
	}
	if r.err == nil && head.has("tnum") {
		p.event.TaskNumber = number(r, head, "tnum", 1<<64-1)
	}
}

func (p *Parser) strictBody(r *reading, body member) {
	e := &p.event
	switch e.Name {
	case "file_open":
		p.strictFile(r, body)
	case "mmap_file":
		e.Prot, e.MapFlags = u32(r, body, "prot"), u32(r, body, "flags")
		if e.HasFile = r.err == nil && body.has("file"); e.HasFile {
			p.strictFile(r, body)
		}
	case "socket_create":
		readSocket(r, body, &e.Socket)
		e.Socket.Kernel = u32(r, body, "kern")
	case "socket_connect", "socket_bind", "socket_accept":
		p.strictSocket(r, body)
	case "task_kill":
		readKill(r, body, &e.Kill)
	}
}

// inside finds a structure, unless something is wrong already.
func inside(r *reading, m member, name string) member {
	if r.err != nil {
		return member{}
	}
	o, err := m.object(name)
	r.err = err
	return o
}

func (p *Parser) strictFile(r *reading, body member) {
	file := inside(r, body, "file")
	inode, path := inside(r, file, "inode"), inside(r, file, "path")
	readFile(r, file, inode, path, &p.event.File)
	if r.err == nil && path.has("dev") {
		readDevice(r, inside(r, path, "dev"))
	}
}

func (p *Parser) strictSocket(r *reading, body member) {
	e := &p.event
	sock := inside(r, body, "sock")
	readSocket(r, sock, &e.Socket)
	digest(r, sock, "owner", e.Socket.Owner[:])
	addr := inside(r, inside(r, body, "addr"), addressKey(e.Socket.Family))
	readAddress(r, addr, e.Socket.Family, e.Name == "socket_accept", &e.Address)
}

func (p *Parser) strictAggregate(line []byte) (value []byte, is bool) {
	if p.tree.parse(line) != nil {
		return nil, false
	}
	whole := member{&p.tree, 0}
	export, err := whole.object("export")
	if err != nil {
		return nil, false
	}
	if kind, err := export.text("type"); err != nil || string(kind) != "aggregate" {
		return nil, false
	}
	body, err := whole.object("aggregate")
	if err != nil {
		return nil, true
	}
	value, _ = body.text("value")
	return value, true
}
