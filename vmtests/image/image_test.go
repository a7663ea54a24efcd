package image

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// need skips a test on a machine without what .ci/install fetches, and fails
// it where libvirt guests are promised.
func need(t *testing.T) {
	t.Helper()
	if _, _, err := Kernel("/var/cache/outguard"); err != nil {
		missing(t, err.Error())
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		missing(t, "/bin/busybox")
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		missing(t, "qemu-img")
	}
}

func missing(t *testing.T, what string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("OUTGUARD_REQUIRE"), ","), "qemu") {
		t.Fatalf("promised, but missing: %s", what)
	}
	t.Skipf("needs %s (.ci/install vm)", what)
}

func TestBuildIsDeterministic(t *testing.T) {
	need(t)
	o := &Options{Files: []File{{Path: "/etc/extra", Mode: 0o640, Data: []byte("extra\n")}}}
	a, err := Build(t.Context(), t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // a clock that leaks in shows itself
	b, err := Build(t.Context(), t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]string{{a.Kernel, b.Kernel}, {a.Initrd, b.Initrd}, {a.Disk, b.Disk}} {
		if !bytes.Equal(read(t, pair[0]), read(t, pair[1])) {
			t.Errorf("two builds differ in %s", filepath.Base(pair[0]))
		}
	}
	o.Files[0].Data = []byte("other\n")
	c, err := Build(t.Context(), t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	if c.Hash == a.Hash || bytes.Equal(read(t, c.Disk), read(t, a.Disk)) {
		t.Error("another file, the same image")
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBuildIsKept(t *testing.T) {
	need(t)
	dir := t.TempDir()
	a, err := Build(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(a.Disk)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), dir, nil); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(a.Disk)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("built anew")
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestOldImagesGo(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"oldest", "older", "new"} {
		if err := os.MkdirAll(filepath.Join(dir, name, "disk"), 0o755); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(filepath.Join(dir, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := prune(dir, 2); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"oldest": false, "older": true, "new": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
}

// TestModulesComeAfterWhatTheyDependOn looks at every kernel that is there.
// Newer ones have some modules built in.
func TestModulesComeAfterWhatTheyDependOn(t *testing.T) {
	need(t)
	for _, line := range Kernels {
		dir := filepath.Join("/var/cache/outguard/kernel", line)
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			continue // need has seen to the one that is asked for
		}
		b, err := newBuild(&Options{Kernel: dir})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(b.release, line+".") {
			t.Errorf("%s is %s", dir, b.release)
		}
		at := map[string]int{}
		for i, m := range b.modules {
			at[m.name] = i
			if !bytes.HasPrefix(m.data, []byte("\x7fELF")) {
				t.Errorf("%s: module %s begins with %x", line, m.name, m.data[:4])
			}
		}
		pairs := [][2]string{{"jbd2", "ext4"}, {"net_failover", "virtio_net"}, {"vsock", "vmw_vsock_virtio_transport"}}
		if line == "6.1" {
			pairs = append(pairs, [2]string{"virtio_ring", "virtio"}, [2]string{"virtio", "virtio_pci"}, [2]string{"crc32c_generic", "ext4"})
		}
		for _, pair := range pairs {
			i, ok := at[pair[0]]
			j, ok2 := at[pair[1]]
			if !ok || !ok2 || i >= j {
				t.Errorf("%s: %s (%d) is to come before %s (%d)", line, pair[0], i, pair[1], j)
			}
		}
	}
}

func TestKernelIsNamed(t *testing.T) {
	cache := t.TempDir()
	for _, line := range []string{"6.1", DefaultKernel} {
		if err := os.MkdirAll(filepath.Join(cache, "kernel", line), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ env, line, err string }{
		{"", DefaultKernel, ""},
		{"6.1", "6.1", ""},
		{"7.2", "", ".ci/install kernels"},
		{"5.10", "", "6.1, 6.12, 7.2"},
		{"../../etc", "", "not one of"},
	} {
		t.Setenv("OUTGUARD_KERNEL", test.env)
		line, dir, err := Kernel(cache)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%q: %v, want an error with %s", test.env, err, test.err)
			}
			continue
		}
		if err != nil || line != test.line || dir != filepath.Join(cache, "kernel", line) {
			t.Errorf("%q: %s in %s, %v", test.env, line, dir, err)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	need(t)
	for _, test := range []struct {
		name string
		o    Options
		want string
	}{
		{"no kernel", Options{Kernel: "/nonexistent"}, "vmlinuz"},
		{"relative path", Options{Files: []File{{Path: "etc/x"}}}, "clean absolute"},
		{"path with dots", Options{Files: []File{{Path: "/etc/../../x"}}}, "clean absolute"},
		{"a guest's own file", Options{Files: []File{{Path: "/etc/inittab"}}}, "twice"},
	} {
		_, err := Build(t.Context(), t.TempDir(), &test.o)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", test.name, err, test.want)
		}
	}
	if _, err := Build(t.Context(), t.TempDir(), &Options{Busybox: "/nonexistent"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no busybox: %v", err)
	}
}
