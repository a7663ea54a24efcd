package lineage

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/outguard/outguard/vsockproto"
)

// makes is an open that made the file of that inode.
func (g *guest) makes(k Key, execID uint32, path string, inode uint64) *vsockproto.Event {
	e := g.open(k, execID)
	e.Path = vsockproto.Tail{Flags: vsockproto.TailMade, Data: []byte(path)}
	e.File = vsockproto.File{Inode: inode, Generation: 7, Dev: 8, Mode: 0o100600}
	return e
}

func TestMade(t *testing.T) {
	tree, g, sh, child := shell()
	tree.Apply(g.makes(sh, 0, "/tmp/before", 7)) // nobody has asked
	tree.KeepMade(true)
	cat := tree.Apply(g.exec(child, 1, "/cat")).ID()
	shell := tree.Lookup(sh).Program().ID
	for _, e := range []*vsockproto.Event{
		g.makes(sh, 0, "/tmp/a", 1), g.makes(sh, 0, "/tmp/b", 2), g.makes(sh, 0, "/var/c", 3), g.makes(child, 1, "/tmp/d", 4),
		g.makes(sh, 0, "cut off", 5),
	} {
		tree.Apply(e)
	}
	dir := g.makes(sh, 0, "/tmp/dir", 6)
	dir.File.Mode = 0o040755
	tree.Apply(dir)
	tree.Apply(g.open(sh, 0))
	want := map[uint64]Made{1: {shell, 1}, 2: {shell, 2}, 3: {shell, 1}, 4: {cat, 1}}
	holds := func(tree *Tree, want map[uint64]Made) {
		t.Helper()
		for inode := range uint64(8) {
			m, is := tree.Made(&vsockproto.File{Inode: inode, Generation: 7, Dev: 8})
			if w, should := want[inode]; is != should || m != w {
				t.Errorf("inode %d: %v %+v, want %v %+v", inode, is, m, should, w)
			}
		}
	}
	holds(tree, want)
	if _, is := tree.Made(&vsockproto.File{Inode: 1, Generation: 8, Dev: 8}); is {
		t.Error("another file with an inode's old number has its maker")
	}
	saved, err := tree.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(saved, identify, nil)
	if err != nil {
		t.Fatal(err)
	}
	holds(again, want)
	again.KeepMade(true)
	again.Apply(g.makes(sh, 0, "/tmp/e", 7))
	want[7] = Made{shell, 3}
	holds(again, want)
	again.SetSession([16]byte{1})
	holds(again, nil)
	tree.KeepMade(false)
	holds(tree, nil)
}

func TestMadeIsBounded(t *testing.T) {
	tree, g, sh, _ := shell()
	tree.KeepMade(true)
	for i := range uint64(maxMade + 10) {
		tree.Apply(g.makes(sh, 0, fmt.Sprintf("/tmp/%d/x", i), i))
	}
	if n, m := len(tree.makers.files.values), len(tree.makers.counts.values); n != maxMade || m != maxMade {
		t.Errorf("%d files and %d directories are kept", n, m)
	}
	file := func(inode uint64) *vsockproto.File { return &vsockproto.File{Inode: inode, Generation: 7, Dev: 8} }
	if _, is := tree.Made(file(9)); is {
		t.Error("the oldest is kept")
	}
	if _, is := tree.Made(file(10)); !is {
		t.Error("one too many is forgotten")
	}
	saved, err := tree.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(saved, identify, nil)
	if err != nil {
		t.Fatal(err)
	}
	again.KeepMade(true)
	more := g.makes(sh, 0, "/tmp/last", maxMade+10)
	tree.Apply(more)
	again.Apply(more)
	a, _ := tree.AppendBinary(nil)
	b, _ := again.AppendBinary(nil)
	if !bytes.Equal(a, b) {
		t.Error("what is read again forgets another than the first")
	}
}

func TestMadeTwiceInACheckpoint(t *testing.T) {
	tree, g, sh, _ := shell()
	tree.KeepMade(true)
	tree.Apply(g.makes(sh, 0, "/tmp/a", 1))
	tree.Apply(g.makes(sh, 0, "/tmp/b", 2))
	saved, err := tree.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	const file, count = 16 + 32 + 8, 32 + 8
	first := saved[len(saved)-count-2*file:]
	copy(first[file:], first[:16])
	if _, err := Parse(saved, identify, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a file that is there twice: %v", err)
	}
}
