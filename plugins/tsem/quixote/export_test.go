package quixote

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/enginetest"
	"github.com/outguard/outguard/plugins/tsem"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

var vm = uuid.UUID{7}

// live is what the engine says of batches, and their export.
func live(t testing.TB, batches ...*engine.Batch) (m engine.Model, lines []byte, odd int) {
	t.Helper()
	e, x := tsem.New(&tsem.Options{Mapping: tsem.Quixote}), tsem.NewExporter()
	for _, b := range batches {
		if err := e.Judge(b, func(f engine.Finding) { t.Error(f.Reason) }); err != nil {
			t.Fatal(err)
		}
		bad := func(err error) { t.Error(err) }
		if err := x.Batch(b, bad, func(e *tsem.Exported) error {
			var plain bool
			if lines, plain = AppendEvent(lines, e); !plain {
				odd++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return e.Models()[0], lines, odd
}

// every has an event of each kind.
func every() *engine.Batch {
	g := enginetest.NewGuest(vm)
	server := g.Running("/usr/sbin/httpd")
	g.Serve(server, 3)
	g.Exploit(server)
	add := func(t vsockproto.EventType, fill func(*vsockproto.Event)) {
		e := g.Event(server, t)
		fill(&e)
		g.Add(&e)
	}
	for _, family := range []uint16{1, 2, 10, 17, 0} {
		for _, socket := range []uint32{1, 2, 10, 17} {
			if socket == 1 && family == 17 {
				continue // what the sockaddr holds is a name then, and odd
			}
			for _, kind := range []vsockproto.EventType{vsockproto.SocketBind, vsockproto.SocketConnect, vsockproto.SocketAccept} {
				add(kind, func(e *vsockproto.Event) {
					e.Socket = vsockproto.Socket{Family: socket, Type: 1, Protocol: 6}
					e.Address = vsockproto.Address{Family: family}
					switch family {
					case 2:
						e.Address.Port, e.Address.Addr4 = [2]byte{0, 80}, [4]byte{192, 0, 2, 1}
					case 10:
						e.Address.Port, e.Address.Addr6, e.Address.Scope = [2]byte{0, 80}, [16]byte{15: 1}, 3
					case 1:
						e.RawAddr.Data = []byte("\x00abstract\x00name")
					case 17:
						e.RawAddr.Data = []byte{17, 0, 1, 2, 3}
					}
				})
			}
		}
	}
	add(vsockproto.FileOpen, func(e *vsockproto.Event) {
		e.File, e.Path = enginetest.File("/tmp/sortAb3x"), vsockproto.Tail{Flags: vsockproto.TailMade, Data: []byte("/tmp/sortAb3x")}
	})
	add(vsockproto.MmapFile, func(e *vsockproto.Event) {
		e.HasFile, e.File, e.Path.Data = true, enginetest.File("/tmp/sortAb3x"), []byte("/tmp/sortAb3x")
	})
	add(vsockproto.SocketListen, func(e *vsockproto.Event) { e.Socket.Family, e.Backlog = 2, 128 })
	add(vsockproto.MmapFile, func(e *vsockproto.Event) { e.Prot, e.MapFlags = 5, 34 })
	for t := vsockproto.TaskSetpgid; t <= vsockproto.Capset; t++ {
		add(t, func(e *vsockproto.Event) {
			s := prototest.Sample(t)
			s.Header, s.Subject = e.Header, e.Subject
			*e = *s
		})
	}
	return g.Batch()
}

// named is a batch of opens of files of those names.
func named(names ...string) *engine.Batch {
	g := enginetest.NewGuest(vm)
	server := g.Running("/usr/sbin/httpd")
	for _, name := range names {
		e := g.Event(server, vsockproto.FileOpen)
		e.File, e.Path.Data = enginetest.File(name), []byte(name)
		copy(e.File.FSID[:], "vda1")
		e.Comm = [16]byte{'{', '"', '\\', 0xff, 'x', '}', '}'}
		g.Add(&e)
	}
	return g.Batch()
}

func replayed(t testing.TB, d Dialect, lines []byte) map[string]any {
	t.Helper()
	all := records(t, string(lines), &ReplayOptions{Dialect: d, SealAfter: -1, Brief: true})
	if len(all) != 2 {
		t.Fatalf("dialect %d: lines that are no event: %v", d, all[1:])
	}
	return all[1]
}

// A replay of an export gives what the live engine has, in both dialects.
func TestReplayEqualsLive(t *testing.T) {
	m, lines, odd := live(t, every(), named("/a", `/quote"d`, "/ünï", "/sp ace, \"type\": \"x"))
	if odd != 0 {
		t.Errorf("%d events that an agent would misread", odd)
	}
	for line := range bytes.Lines(lines) {
		if !json.Valid(line) {
			t.Errorf("no JSON: %s", line)
		}
	}
	if n := bytes.Count(lines, []byte(`"instance": "1"`)); n != 2 {
		t.Errorf("%d events of a temporary file, want its open and its mapping", n)
	}
	for _, d := range []Dialect{Text, Strict} {
		if got := replayed(t, d, lines); got["measurement"] != m.Measurement || got["state"] != m.State || got["points"] != float64(m.Points) {
			t.Errorf("dialect %d: %v, want %+v", d, got["measurement"], m)
		}
	}
}

// What Quixote's agents misread is JSON all the same, and means what it means.
func TestReplayOddNames(t *testing.T) {
	odd := []string{"/a\\b", "/end\\", "/{", "/}", "/{x}", "/\n\t\x1b\x01", "/\xff\xfe", "/\xe2\x80", "/\x7f", ""}
	m, lines, n := live(t, named(odd...))
	if n != len(odd)-2 { // DEL is as it is in both, and an empty one is a quote
		t.Errorf("%d of %d names are odd", n, len(odd))
	}
	for line := range bytes.Lines(lines) {
		if !json.Valid(line) {
			t.Errorf("no JSON: %s", line)
		}
	}
	if got := replayed(t, Strict, lines); got["measurement"] != m.Measurement || got["state"] != m.State {
		t.Errorf("%v, want %+v", got, m)
	}
}

// FuzzExport: whatever a file is called, its line is JSON and says it.
func FuzzExport(f *testing.F) {
	for _, s := range []string{"/bin/sh", "/\\", "/\xff", "/{\"", "/\u2028", "/\ufffd"} {
		f.Add(s, s)
	}
	strict, text := NewParser(Strict), NewParser(Text)
	f.Fuzz(func(t *testing.T, path, comm string) {
		if len(path) > 4096 || bytes.IndexByte([]byte(path), 0) >= 0 {
			return
		}
		b := named(path)
		_ = tsem.NewExporter().Batch(b, func(err error) { t.Fatal(err) }, func(e *tsem.Exported) error {
			copy(e.Record.Comm[:], comm)
			line, plain := AppendEvent(nil, e)
			if !json.Valid(line) {
				t.Fatalf("no JSON: %s", line)
			}
			if path == "" {
				path = `"`
			}
			got, err := strict.Parse(line)
			if err != nil || string(got.File.Path) != path {
				t.Fatalf("%q is read as %q, error %v", path, got.File.Path, err)
			}
			if !plain {
				return nil
			}
			if got, err = text.Parse(bytes.TrimSuffix(line, []byte("\n"))); err != nil || string(got.File.Path) != path {
				t.Fatalf("%q is plain, and read as %q, error %v", path, got.File.Path, err)
			}
			return nil
		})
	})
}
