package image

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

//go:embed files
var guestFiles embed.FS

// epoch is the time of everything in an image, seconds since 1970.
const epoch = 1700000000

// version is part of the hash: raise it when a build of the same inputs
// changes.
const version = "3"

// File is one file of the guest's root.
type File struct {
	Path string      // in the guest, absolute
	Mode fs.FileMode // permission bits only
	Data []byte
}

// FromHost reads a file of this machine, to stand at path in the guest.
func FromHost(path string, mode fs.FileMode, source string) (File, error) {
	b, err := os.ReadFile(source)
	if err != nil {
		return File{}, fmt.Errorf("guest file %s: %w", path, err)
	}
	return File{Path: path, Mode: mode, Data: b}, nil
}

// Compile builds a program of the module in clone, static, to stand at path in
// the guest. verb and args are the go command's: "build" or "test", "-c".
func Compile(ctx context.Context, clone, path, verb string, args ...string) (File, error) {
	dir, err := os.MkdirTemp("", "outguard-guest-*")
	if err != nil {
		return File{}, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, filepath.Base(path))
	cmd := exec.CommandContext(ctx, "go", append([]string{verb, "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", out}, args...)...)
	cmd.Dir, cmd.Env = clone, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return File{}, fmt.Errorf("compile %s: %w\n%s", filepath.Base(path), err, text)
	}
	return FromHost(path, 0o755, out)
}

// Options say where things are. nil and zero mean the defaults.
type Options struct {
	Kernel  string // unpacked kernel package; default Kernel's answer for /var/cache/outguard
	Busybox string // static busybox; default /bin/busybox
	SizeMiB int    // size of the root's file system; default 64, or more if the files need it
	Files   []File // beside the guest's own: the agent, tests
}

// Image is a finished one. Its files are not to be changed: a guest gets a
// copy of Disk.
type Image struct {
	Hash    string // of everything that went in
	Kernel  string // path of the kernel
	Initrd  string // path of the initial file system
	Disk    string // path of the root, qcow2
	Release string // the kernel's, as uname -r says it
}

// Build returns the image for o, built under dir unless it is there already.
func Build(ctx context.Context, dir string, o *Options) (*Image, error) {
	b, err := newBuild(o)
	if err != nil {
		return nil, fmt.Errorf("guest image: %w", err)
	}
	img := &Image{Hash: b.hash(), Release: b.release}
	final := filepath.Join(dir, img.Hash)
	img.Kernel, img.Initrd, img.Disk = filepath.Join(final, "vmlinuz"), filepath.Join(final, "initrd"), filepath.Join(final, "root.qcow2")
	if now := time.Now(); os.Chtimes(final, now, now) == nil { // it is there, and was of use
		return img, nil
	}
	if err := b.into(ctx, dir, final); err != nil {
		return nil, fmt.Errorf("guest image %s: %w", img.Hash, err)
	}
	if err := prune(dir, kept); err != nil {
		return nil, fmt.Errorf("guest images: %w", err)
	}
	return img, nil
}

// kept is how many images stay: each new agent makes one for each kernel.
const kept = 12

// prune removes all but the n images that were of use last.
func prune(dir string, n int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type used struct {
		path string
		at   time.Time
	}
	var all []used
	for _, e := range entries {
		if fi, err := e.Info(); err == nil { // else another has removed it
			all = append(all, used{filepath.Join(dir, e.Name()), fi.ModTime()})
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].at.After(all[j].at) })
	for _, u := range all[min(n, len(all)):] {
		if err := os.RemoveAll(u.path); err != nil {
			return err
		}
	}
	return nil
}

// build holds the inputs, read whole, so that what is hashed is what is used.
type build struct {
	release string
	vmlinuz []byte
	busybox []byte
	applets []string
	modules []module
	files   []File
	sizeMiB int
}

func newBuild(o *Options) (*build, error) {
	if o == nil {
		o = &Options{}
	}
	kernel := o.Kernel
	if kernel == "" {
		var err error
		if _, kernel, err = Kernel("/var/cache/outguard"); err != nil {
			return nil, err
		}
	}
	b := &build{sizeMiB: o.SizeMiB}
	if err := b.readKernel(kernel); err != nil {
		return nil, err
	}
	if err := b.readBusybox(orDefault(o.Busybox, "/bin/busybox")); err != nil {
		return nil, err
	}
	b.files = append(ownFiles(), o.Files...)
	sort.SliceStable(b.files, func(i, j int) bool { return b.files[i].Path < b.files[j].Path })
	for i, f := range b.files {
		if !filepath.IsAbs(f.Path) || filepath.Clean(f.Path) != f.Path {
			return nil, fmt.Errorf("file %q: not a clean absolute path", f.Path)
		}
		if i > 0 && f.Path == b.files[i-1].Path {
			return nil, fmt.Errorf("file %s: named twice", f.Path)
		}
	}
	b.sizeMiB = max(b.sizeMiB, b.neededMiB())
	return b, nil
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func (b *build) readKernel(dir string) error {
	release, vmlinuz, modules, err := kernelFiles(dir)
	if err != nil {
		return err
	}
	b.release = release
	if b.vmlinuz, err = os.ReadFile(vmlinuz); err != nil {
		return err
	}
	b.modules, err = moduleOrder(modules, guestModules)
	return err
}

// ownFiles are what every guest has.
func ownFiles() []File {
	at := map[string]string{
		"inittab": "/etc/inittab", "rcS": "/etc/init.d/rcS", "task": "/etc/init.d/task",
		"agent": "/etc/init.d/agent", "web": "/etc/init.d/web", "root": "/etc/init.d/root",
		"passwd": "/etc/passwd", "group": "/etc/group",
		"index.html": "/srv/www/index.html", "search.cgi": "/srv/www/cgi-bin/search.cgi",
		"parts.txt": "/srv/data/parts.txt",
	}
	var files []File
	for name, path := range at {
		data, err := guestFiles.ReadFile("files/" + name)
		if err != nil {
			panic(err) // the table above names a file that is not embedded
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(string(data), "#!") {
			mode = 0o755
		}
		files = append(files, File{Path: path, Mode: mode, Data: data})
	}
	return files
}

// neededMiB is the content, a quarter more for the file system's own, and 32
// MiB to write to.
func (b *build) neededMiB() int {
	n := len(b.busybox)
	for _, f := range b.files {
		n += len(f.Data)
	}
	return max(64, n*5/4>>20+32)
}

// hash names everything that the image's bytes depend on.
func (b *build) hash() string {
	h := sha256.New()
	add := func(name string, data []byte) {
		fmt.Fprintf(h, "%q %d %x\n", name, len(data), sha256.Sum256(data))
	}
	add("version", []byte(version))
	add("size", fmt.Append(nil, b.sizeMiB))
	add("release", []byte(b.release))
	add("vmlinuz", b.vmlinuz)
	add("busybox", b.busybox)
	add("applets", []byte(strings.Join(b.applets, " ")))
	for _, m := range b.modules {
		add("module "+m.name, m.data)
	}
	init, _ := guestFiles.ReadFile("files/initramfs-init")
	add("init", init)
	for _, f := range b.files {
		add(fmt.Sprintf("file %s %o", f.Path, f.Mode), f.Data)
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// into builds beside the final place and renames, so that an image that is
// there is whole. Two builders of the same image do the work twice; the first
// to finish wins.
func (b *build) into(ctx context.Context, dir, final string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, "building-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := b.write(ctx, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, final); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (b *build) write(ctx context.Context, dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "vmlinuz"), b.vmlinuz, 0o644); err != nil {
		return err
	}
	if err := b.writeInitrd(filepath.Join(dir, "initrd")); err != nil {
		return err
	}
	return b.writeRoot(ctx, filepath.Join(dir, "root.qcow2"))
}

// writeInitrd writes the initial file system.
func (b *build) writeInitrd(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	init, err := guestFiles.ReadFile("files/initramfs-init")
	if err != nil {
		return err
	}
	c := &cpioWriter{w: f}
	for _, d := range []string{"bin", "dev", "modules", "proc", "root", "sys"} {
		c.dir(d)
	}
	c.char("dev/console", 0o600, 5, 1)
	c.char("dev/null", 0o666, 1, 3)
	c.file("bin/busybox", 0o755, b.busybox)
	c.symlink("bin/sh", "busybox")
	c.file("init", 0o755, init)
	var order strings.Builder
	for _, m := range b.modules {
		c.file("modules/"+m.name+".ko", 0o644, m.data)
		fmt.Fprintln(&order, m.name)
	}
	c.file("modules/order", 0o644, []byte(order.String()))
	if err := c.close(); err != nil {
		return err
	}
	return f.Close()
}
