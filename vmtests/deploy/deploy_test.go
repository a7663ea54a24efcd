package deploy

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outguard/outguard/vmtests/image"
	"github.com/outguard/outguard/vmtests/product"
	"github.com/outguard/outguard/vmtests/vm"
)

const cache = "/var/cache/outguard"

// TestPackage is the package's life in a Debian guest.
func TestPackage(t *testing.T) {
	required(t)
	s := newSite(t)
	s.await("comes up with the system", 6*time.Minute, s.live)
	s.root("test \"$(systemctl is-active outguard-agent)\" = active")
	if got := s.root("systemctl show -P LoadState -P Result systemd-modules-load.service"); !strings.Contains(got, "success") {
		t.Errorf("the modules: %q", got)
	}
	early := "a=$(systemctl show -P ActiveEnterTimestampMonotonic outguard-agent); b=$(systemctl show -P ActiveEnterTimestampMonotonic sysinit.target); echo $a $b; test $a -le $b"
	t.Logf("agent and sysinit.target, us since boot: %s", s.root(early))
	t.Logf("memory: %s", s.root("grep -E 'VmHWM|VmRSS' /proc/$(pidof outguard-agent)/status"))

	s.root("kill -9 $(pidof outguard-agent)")
	s.await("is started again", time.Minute, s.live)
	s.root("dpkg -i /root/outguard-agent.deb >/root/log 2>&1 || { cat /root/log; false; }")
	s.await("is there in its next version", time.Minute, s.live)
	if v := s.vm(); s.missing(v) != 0 {
		t.Errorf("records are missing: %+v", v)
	}
	s.root("dpkg -r outguard-agent >/root/log 2>&1 || { cat /root/log; false; }")
	s.root("! pidof outguard-agent && test ! -e /sys/fs/bpf/outguard && ! systemctl is-enabled outguard-agent")
}

func required(t *testing.T) {
	t.Helper()
	if !slices.Contains(strings.Split(os.Getenv("OUTGUARD_REQUIRE"), ","), "deploy") {
		t.Skip("needs a root of Debian with systemd: set OUTGUARD_REQUIRE=deploy (make test-deploy does)")
	}
}

// packed is the one package of a kind that make packages made.
func packed(t *testing.T, clone, kind string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(clone, "bin", "packages", "*."+kind))
	if err != nil || len(all) != 1 {
		t.Fatalf("packages: %v, %v (make packages makes one)", all, err)
	}
	return all[0]
}

// site is the installed product and one guest with the package in it.
type site struct {
	t       *testing.T
	install *product.Install
	guest   *vm.Guest
}

func newSite(t *testing.T) *site {
	t.Helper()
	clone, err := filepath.Abs("../..")
	check(t, err)
	here, err := vm.Here()
	check(t, err)
	release, err := here.Claim()
	check(t, err)
	t.Cleanup(func() { check(t, release()) })
	layout := product.Under(filepath.Join(here.Dir, "product"))
	check(t, product.Remove(t.Context(), layout))
	img := debian(t, clone)
	lab, err := vm.Open(t.Context(), img, &vm.Options{Dir: here.Dir, Cache: cache})
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(here.Dir)) })
	s := &site{t: t}
	config := fmt.Sprintf("state_dir: %s\nrun_dir: %s\nplaybook: %s\nsession:\n  grace: 300s\n  heartbeat: 2s\n", layout.State, layout.Run, filepath.Join(layout.Config, "playbook.yaml"))
	playbook := "version: 1\nrules:\n  - name: watch\n    match: {}\n    steps: [log]\n    once_per: event\n"
	s.install, err = product.New(t.Context(), layout, filepath.Join(clone, "bin"), product.Files{Config: config, Playbook: playbook})
	check(t, err)
	t.Cleanup(func() { check(t, product.Remove(context.Background(), layout)) })
	check(t, s.install.StartMonitor(t.Context()))
	s.guest, err = lab.Define(t.Context(), vm.Spec{Name: here.Name("debian"), Image: img, MemoryMiB: 512, Root: true})
	check(t, err)
	t.Cleanup(func() {
		if console, err := s.guest.Console(); err == nil && t.Failed() {
			t.Logf("its console ends:\n%s", console[max(0, len(console)-4000):])
		}
		check(t, s.guest.Remove(context.Background()))
	})
	c, err := s.install.Enroll(t.Context(), s.guest.Name, "")
	check(t, err)
	if c.Vhost != "" {
		s.guest.Serve(&vm.Channel{CID: c.CID, Control: c.Vhost, Socket: c.Socket})
	}
	check(t, s.guest.Start(t.Context()))
	return s
}

// debian is an image whose kernel and first file system are the lab's, and whose
// root is Debian's with the package in it.
func debian(t *testing.T, clone string) *image.Image {
	t.Helper()
	deb := packed(t, clone, "deb")
	_, kernel, err := image.Kernel(cache)
	check(t, err)
	base, err := image.Build(t.Context(), filepath.Join(cache, "images"), &image.Options{Kernel: kernel})
	check(t, err)
	dir := t.TempDir()
	tree := filepath.Join(dir, "root")
	check(t, os.Mkdir(tree, 0o755))
	do(t, "tar", "-C", tree, "--numeric-owner", "--exclude=./dev/*", "-xf", filepath.Join(cache, "debian", "bookworm.tar"))
	do(t, "install", "-m", "0644", deb, filepath.Join(tree, "root", "outguard-agent.deb"))
	do(t, "chroot", tree, "dpkg", "-i", "/root/outguard-agent.deb")
	modules(t, tree, kernel, base.Release)
	hand(t, tree, clone)
	raw, disk := filepath.Join(dir, "root.raw"), filepath.Join(dir, "root.qcow2")
	do(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, raw, "1G")
	do(t, "qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, disk)
	return &image.Image{Hash: base.Hash, Kernel: base.Kernel, Initrd: base.Initrd, Disk: disk, Release: base.Release}
}

// modules gives the root those that the package wants loaded.
func modules(t *testing.T, tree, kernel, release string) {
	t.Helper()
	from := filepath.Join(kernel, "lib", "modules", release, "kernel")
	if _, err := os.Stat(from); err != nil {
		from = filepath.Join(kernel, "usr", "lib", "modules", release, "kernel")
	}
	to := filepath.Join(tree, "usr", "lib", "modules", release)
	for _, d := range []string{"net/vmw_vsock", "drivers/firmware", "drivers/virtio", "drivers/char"} {
		if _, err := os.Stat(filepath.Join(from, d)); err != nil {
			continue // built in
		}
		parent := filepath.Join(to, "kernel", filepath.Dir(d))
		check(t, os.MkdirAll(parent, 0o755))
		do(t, "cp", "-r", filepath.Join(from, d), parent)
	}
	do(t, "depmod", "-b", tree, release)
}

// hand lets the test's root into the guest, as in the lab's own images.
func hand(t *testing.T, tree, clone string) {
	t.Helper()
	do(t, "install", "-m", "0755", filepath.Join(clone, "vmtests", "image", "files", "root"), filepath.Join(tree, "usr", "sbin", "test-root"))
	unit := "[Service]\nExecStart=/usr/sbin/test-root\nRestart=always\n[Install]\nWantedBy=multi-user.target\n"
	check(t, os.WriteFile(filepath.Join(tree, "etc/systemd/system/test-root.service"), []byte(unit), 0o644))
	do(t, "systemctl", "--root", tree, "enable", "-q", "test-root.service")
}

func (s *site) vm() product.VM {
	s.t.Helper()
	v, err := s.install.VM(s.t.Context(), s.guest.Name)
	check(s.t, err)
	return v
}

func (s *site) live() bool {
	live, missing := s.vm().Attached()
	return live && len(missing) == 0
}

func (s *site) missing(v product.VM) (n uint64) {
	for _, c := range v.Classes {
		n += c.Missing
	}
	return n
}

// root runs a line in the guest; it is to succeed.
func (s *site) root(line string) string {
	s.t.Helper()
	out, status, err := s.guest.Root(s.t.Context(), line, 2*time.Minute)
	if err != nil || status != 0 {
		s.t.Fatalf("%q: status %d, %v: %s", line, status, err, out)
	}
	return strings.TrimSpace(out)
}

func (s *site) await(what string, within time.Duration, yes func() bool) {
	s.t.Helper()
	time.Sleep(3 * time.Second) // what was so before is over
	for end := time.Now().Add(within); !yes(); time.Sleep(500 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("the agent %s: not within %s", what, within)
		}
	}
}

func do(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
