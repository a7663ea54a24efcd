package domain

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// head writes the head of a core as QEMU does, with a section header between.
func head(notes string, loads ...load) []byte {
	le := binary.LittleEndian
	const between = 128
	b := make([]byte, elfHeader+between)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 4)
	le.PutUint64(b[32:], elfHeader+between)
	le.PutUint64(b[40:], elfHeader)
	le.PutUint16(b[54:], elfProgram)
	le.PutUint16(b[56:], uint16(1+len(loads)))
	le.PutUint16(b[60:], 2)
	add := func(kind uint32, off, start, size uint64) {
		p := make([]byte, elfProgram)
		le.PutUint32(p, kind)
		for i, v := range []uint64{off, 0, start, size, size} {
			le.PutUint64(p[8+8*i:], v)
		}
		b = append(b, p...)
	}
	at := uint64(elfHeader + between + elfProgram*(1+len(loads)))
	add(ptNote, at, 0, uint64(len(notes)))
	at += uint64(len(notes))
	for _, l := range loads {
		add(ptLoad, at, l.start, l.size)
		at += l.size
	}
	b = append(b, notes...)
	for _, l := range loads {
		for at := l.start; at < min(l.start+l.size, firstEnd); at++ {
			b = append(b, byte(at>>12))
		}
	}
	return b
}

var (
	small = []load{{start: 0, size: legacy}, {start: 0xc0000, size: 256<<20 - 0xc0000}, {start: 0xfffc0000, size: 0x40000}}
	large = []load{{start: 0, size: legacy}, {start: 0xc0000, size: 2<<30 - 0xc0000}, {start: 0xfd000000, size: 16 << 20}, {start: 0xfffc0000, size: 0x40000}, {start: high, size: 4 << 30}}
)

func TestCoreHead(t *testing.T) {
	stream := append(head("registers and more", large...), "more memory"...)
	r := bytes.NewReader(stream)
	h, err := readHead(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.readFirst(r); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "more memory" {
		t.Errorf("it read on, to %q", rest)
	}
	if n := len(h.loads[1].first); len(h.loads[0].first) != legacy || n != firstEnd-0xc0000 || h.loads[1].first[0] != 0xc0 || h.loads[2].first != nil {
		t.Errorf("%d bytes of the first range, %d of the second", len(h.loads[0].first), n)
	}
	at := []int64{1 << 20, 2 << 20, 3 << 20, 4 << 20, 5 << 20}
	again, err := readHead(bytes.NewReader(h.layout(at)))
	if err != nil || string(again.notes) != "registers and more" || len(again.loads) != len(large) {
		t.Fatalf("%+v, %v", again, err)
	}
	for i, l := range again.loads {
		if l.start != large[i].start || l.size != large[i].size || int64(l.off) != at[i] {
			t.Errorf("range %d: %#x bytes for %#x at %#x", i, l.size, l.start, l.off)
		}
	}
}

func TestCoreHeadRefused(t *testing.T) {
	for name, break_ := range map[string]func(b []byte) []byte{
		"cut short":          func(b []byte) []byte { return b[:elfHeader+200] },
		"32 bits":            func(b []byte) []byte { b[4] = 1; return b },
		"no core":            func(b []byte) []byte { b[16] = 2; return b },
		"too many ranges":    func(b []byte) []byte { b[57] = 0xff; return b },
		"no ranges":          func(b []byte) []byte { b[56] = 1; return b },
		"headers before":     func(b []byte) []byte { b[32] = 8; return b },
		"headers far behind": func(b []byte) []byte { b[36] = 1; return b },
		"notes without end":  func(b []byte) []byte { b[elfHeader+128+32+4] = 1; return b },
		"no memory in it":    func(b []byte) []byte { clear(b[elfHeader+128+elfProgram+32:][:8]); return b },
		"ranges turned":      func(b []byte) []byte { b[elfHeader+128+elfProgram+24+3] = 0xff; return b },
		"two notes":          func(b []byte) []byte { b[elfHeader+128+elfProgram] = ptNote; return b },
		"a range round":      func(b []byte) []byte { b[elfHeader+128+elfProgram+39] = 0xff; return b },
	} {
		if h, err := readHead(bytes.NewReader(break_(head("notes", small...)))); err == nil {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

func FuzzCoreHead(f *testing.F) {
	f.Add(head("notes", small...))
	f.Add(head("", large...))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHead(bytes.NewReader(b))
		if err != nil {
			return
		}
		if err := h.readFirst(bytes.NewReader(b[h.read:])); err == nil && h.read > uint64(len(b)) {
			t.Errorf("read %d of %d bytes", h.read, len(b))
		}
		at := make([]int64, len(h.loads))
		if text := h.layout(at); len(text) > ramAt {
			t.Errorf("a head of %d bytes", len(text))
		} else if again, err := readHead(bytes.NewReader(h.layout(at))); err != nil || !bytes.Equal(again.notes, h.notes) || len(again.loads) != len(h.loads) {
			t.Errorf("%+v became %+v, %v", h, again, err)
		}
		if m, err := mapMemory(h.loads, 256<<20); err == nil && len(m.at) != len(h.loads) {
			t.Errorf("%d ranges of %d", len(m.at), len(h.loads))
		}
	})
}

// TestMemoryMap: RAM is where its file is in the core, and what is no RAM behind it.
func TestMemoryMap(t *testing.T) {
	beside := append(large[:2:2], load{start: 2 << 30, size: mebi}, load{start: high, size: 4 << 30}) // a display where the RAM ends
	far := append(small[:2:2], load{start: 1 << 40, size: 16 << 20})
	open := []load{{start: 0, size: 256 << 20}}
	for name, c := range map[string]struct {
		loads []load
		ram   uint64
		want  string
	}{
		"large":  {large, 6 << 30, "[1000000 10c0000 181000000 182000000 81000000] [{fd000000 1000000 181000000} {fffc0000 40000 182000000}] 182040000"},
		"small":  {small, 256 << 20, "[1000000 10c0000 11000000] [{fffc0000 40000 11000000}] 11040000"},
		"beside": {beside, 6 << 30, "[1000000 10c0000 181000000 81000000] [{80000000 100000 181000000}] 181100000"},
		"far":    {far, 256 << 20, "[1000000 10c0000 11000000] [{10000000000 1000000 11000000}] 12000000"},
		"whole":  {open, 256 << 20, "[1000000] [] 11000000"},
	} {
		m, err := mapMemory(c.loads, c.ram)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := fmt.Sprintf("%x %x %x", m.at, m.peeked, m.size); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestMemoryMapThatDoesNotFit(t *testing.T) {
	hole := []load{{start: 0, size: legacy}, {start: 0xc0000, size: 240<<20 - 0xc0000}} // the guest has hidden the rest
	plugged := append(large[:4:4], load{start: high, size: 4 << 30}, load{start: high + 4<<30, size: 1 << 30})
	for name, c := range map[string]struct {
		loads []load
		ram   uint64
	}{
		"more RAM than ranges": {small, 512 << 20},
		"less RAM than ranges": {small, 128 << 20},
		"a hole":               {hole, 256 << 20},
		"plugged in":           {plugged, 6 << 30},
		"RAM at 1 TiB":         {append(large[:4:4], load{start: 1 << 40, size: 4 << 30}), 6 << 30},
		"none":                 {nil, 256 << 20},
		"all of it elsewhere":  {[]load{{start: high, size: 256 << 20}}, 256 << 20},
	} {
		if m, err := mapMemory(c.loads, c.ram); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

// TestSparseCopy: what is copied is the same, holes and pages of zeros are holes,
// and those of the source are no fewer afterwards.
func TestSparseCopy(t *testing.T) {
	fd, err := unix.MemfdCreate("ram", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	ram := os.NewFile(uintptr(fd), "ram")
	defer ram.Close()
	const size = 64 << 20
	if err := ram.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 3*page - 1, chunk - 1, 40<<20 + 5, size - 1} {
		if _, err := ram.WriteAt([]byte{0xa5}, at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ram.WriteAt(make([]byte, 8<<20), 20<<20); err != nil { // data, and all zero
		t.Fatal(err)
	}
	to, err := os.Create(filepath.Join(t.TempDir(), "core"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := to.Truncate(size + page); err != nil {
		t.Fatal(err)
	}
	before := blocks(t, ram)
	var done atomic.Uint64
	all := []piece{{size: chunk, to: page}, {from: chunk, size: size - chunk, to: page + chunk}}
	if err := copyPieces(t.Context(), to, ram, all, &done); err != nil {
		t.Fatal(err)
	}
	if at := sameContent(t, io.NewSectionReader(ram, 0, size), io.NewSectionReader(to, page, size)); at >= 0 {
		t.Errorf("differs at %#x", at)
	}
	if done.Load() != size {
		t.Errorf("%d bytes done", done.Load())
	}
	if n := blocks(t, ram); n != before {
		t.Errorf("the source has %d bytes now, %d before", n, before)
	}
	if n := blocks(t, to); n > 1<<20 {
		t.Errorf("the copy takes %d bytes", n)
	}
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if err := copyPieces(ctx, to, ram, all, &done); !errors.Is(err, gone) {
		t.Errorf("given up: %v", err)
	}
}

func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func FuzzCommandLine(f *testing.F) {
	vm := uuid.MustParse("1780eec4-8904-4bbb-9a7d-34d48b3a7115")
	f.Add([]byte("qemu\x00-uuid\x00" + vm.String() + "\x00-object\x00{\"qom-type\":\"memory-backend-memfd\",\"share\":true,\"size\":4096}\x00"))
	f.Add([]byte("-object\x00memory-backend-ram,size=1\x00-object\x00{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseBackend(b, vm); (err == nil) != (m.Size > 0 && m.Share) {
			t.Errorf("%+v, %v", m, err)
		}
	})
}

func TestBackendOfCommandLine(t *testing.T) {
	vm := uuid.MustParse("1780eec4-8904-4bbb-9a7d-34d48b3a7115")
	const memfd = `{"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"size":268435456}`
	line := func(objects ...string) []byte {
		args := []string{"/usr/bin/qemu-system-x86_64", "-object", `{"qom-type":"secret","id":"masterKey0"}`, "-uuid", vm.String()}
		for _, o := range objects {
			args = append(args, "-object", o)
		}
		return []byte(strings.Join(args, "\x00") + "\x00")
	}
	if b, err := parseBackend(line(memfd), vm); err != nil || b.Size != 256<<20 || !b.names("/memfd:memory-backend-memfd (deleted)") || b.names("/memfd:other") {
		t.Errorf("%+v, %v", b, err)
	}
	file := `{"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"/var/lib/libvirt/qemu/ram/1-web","share":true,"size":4096}`
	if b, err := parseBackend(line(file), vm); err != nil || !b.names("/var/lib/libvirt/qemu/ram/1-web/pc.ram") || b.names("/var/lib/libvirt/qemu/ram/1-webmail/pc.ram") {
		t.Errorf("%+v, %v", b, err)
	}
	for name, c := range map[string]struct {
		line []byte
		want error
	}{
		"private":      {line(strings.Replace(memfd, "true", "false", 1)), errPrivate},
		"no file":      {line(strings.Replace(memfd, "memfd", "ram", 1)), errPrivate},
		"none":         {line(), errPrivate},
		"two nodes":    {line(memfd, memfd), errSeveral},
		"huge pages":   {line(strings.Replace(memfd, "true", `true,"hugetlb":true`, 1)), errHuge},
		"as text":      {line("memory-backend-memfd,id=pc.ram,share=on,size=1G"), nil},
		"broken":       {line("{"), nil},
		"no size":      {line(strings.Replace(memfd, "268435456", "0", 1)), nil},
		"another's":    {bytes.Replace(line(memfd), []byte("1780"), []byte("1781"), 1), nil},
		"empty":        {nil, nil},
		"not a number": {line(strings.Replace(memfd, "268435456", `"1G"`, 1)), nil},
	} {
		if b, err := parseBackend(c.line, vm); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v", name, b, err)
		}
	}
}

// TestGivenAwayDescriptor: who opens it late opens nothing of the monitor's.
func TestGivenAwayDescriptor(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	path := fmt.Sprintf("/proc/self/fd/%d", w.Fd())
	if err := giveAway(w); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the pipe is still open for writing: %d, %v", n, err)
	}
	for range 10 { // none of these has its number
		f, err := os.Create(filepath.Join(t.TempDir(), "record"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	runtime.GC()
	if to, err := os.Readlink(path); err != nil || to != os.DevNull {
		t.Errorf("it leads to %s, %v", to, err)
	}
	late, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.Write([]byte("a guest's memory")); err != nil {
		t.Error(err)
	}
	_ = late.Close()
}
