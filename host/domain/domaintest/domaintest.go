// Package domaintest boots tiny guests under a real libvirt for tests of
// host/domain and of what stands on it. Each guest is Debian's kernel with a
// busybox that counts on its disks, without hardware virtualisation.
//
// They run where OUTGUARD_REQUIRE contains "libvirt", and fail there if
// something is missing; elsewhere a test is skipped. A benchmark needs no such
// promise and is skipped, naming what is missing, where it cannot run.
package domaintest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// Prefix begins the name of every domain that this package defines.
const Prefix = "respond-test-"

// Config says what a guest has beyond a CPU and 256 MiB of memory.
type Config struct {
	Memory  int      // MiB; default 256
	Shared  bool     // its memory is a memfd that QEMU shares
	Fill    int      // MiB of it that the guest writes before it counts, none like another
	Idle    bool     // it counts to one and sleeps
	Disks   []string // formats, "raw" or "qcow2": vda, vdb ... of 16 MiB each
	Backing bool     // the qcow2 disks stand on a raw image of their own
	CDROM   bool     // an empty drive and a read-only disk beside them
	Vhost   string   // socket of a vhost-user vsock backend, which keeps a domain from migrating
	Devices string   // further XML inside <devices>
	Off     bool     // define it only
}

// Guest is one defined domain.
type Guest struct {
	Name  string
	UUID  uuid.UUID
	Dir   string // holds the images; QEMU can reach it
	Disks []string
	QMP   string // a second monitor of QEMU's own, for measuring
	Log   string // console
}

// Require skips, or fails where it was promised, unless cond holds.
func Require(t testing.TB, cond bool, format string, args ...any) {
	t.Helper()
	if cond {
		return
	}
	missing := fmt.Sprintf(format, args...)
	if promised() {
		t.Fatalf("OUTGUARD_REQUIRE promises libvirt, but %s", missing)
	}
	t.Skip("needs libvirt: " + missing)
}

func promised() bool {
	return slices.Contains(strings.FieldsFunc(os.Getenv("OUTGUARD_REQUIRE"), func(r rune) bool { return r == ',' || r == ' ' }), "libvirt")
}

// Libvirt skips unless a guest is to be run, and can be.
func Libvirt(t testing.TB) {
	t.Helper()
	if _, bench := t.(*testing.B); !bench && !promised() {
		t.Skip("uses libvirt: set OUTGUARD_REQUIRE=libvirt")
	}
	Require(t, os.Getuid() == 0, "not root")
	for _, name := range []string{"virsh", "qemu-system-x86_64", "qemu-img", "busybox", "cpio"} {
		_, err := exec.LookPath(name)
		Require(t, err == nil, "no %s", name)
	}
	said, err := output("virsh", "-c", "qemu:///system", "version")
	Require(t, err == nil, "libvirtd does not answer (start it with virtlogd -d && libvirtd -d, or see why it ended in its log and in dmesg): %v: %s", err, said)
	path, _ := kernel()
	Require(t, path != "", "no kernel with its modules, in the cache or in /boot")
}

// kernel returns Debian's kernel and its modules: the one that was fetched for
// guests, else the newest that is installed.
func kernel() (path, modules string) {
	cache := os.Getenv("OUTGUARD_CACHE")
	if cache == "" {
		cache = "/var/cache/outguard"
	}
	for _, root := range []string{filepath.Join(cache, "kernel/6.1"), "/"} {
		all, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
		slices.Sort(all)
		for _, path := range slices.Backward(all) {
			release := strings.TrimPrefix(filepath.Base(path), "vmlinuz-")
			modules := filepath.Join(root, "lib/modules", release, "kernel")
			if _, err := os.Stat(modules); err == nil {
				return path, modules
			}
		}
	}
	return "", ""
}

// Start defines a guest and, unless c.Off, runs it until its first count.
// The test's end destroys and undefines it.
func Start(t testing.TB, c Config) *Guest {
	t.Helper()
	Libvirt(t)
	g := &Guest{UUID: uuid.New(), Dir: reachable(t)}
	g.Name = Prefix + g.UUID.String()[:8]
	g.QMP, g.Log = filepath.Join(g.Dir, "qmp"), filepath.Join(g.Dir, "console")
	path, modules := kernel()
	run(t, "cp", path, filepath.Join(g.Dir, "vmlinuz"))
	initramfs(t, modules, filepath.Join(g.Dir, "initrd"))
	for i, format := range c.Disks {
		g.Disks = append(g.Disks, disk(t, g.Dir, fmt.Sprintf("vd%c", 'a'+i), format, c.Backing))
	}
	run(t, "chown", "-R", "libvirt-qemu:", g.Dir)
	def := filepath.Join(g.Dir, "domain.xml")
	write(t, def, g.xml(c))
	virsh(t, "define", def)
	t.Cleanup(func() {
		_, _ = output("virsh", "-c", "qemu:///system", "destroy", g.Name)
		_, _ = output("virsh", "-c", "qemu:///system", "undefine", "--snapshots-metadata", g.Name)
	})
	if !c.Off {
		g.Boot(t)
	}
	return g
}

// bootWithin is generous: a loaded machine takes twenty times its usual 3 s.
const bootWithin = 3 * time.Minute

// Boot starts the guest and returns at its first count.
func (g *Guest) Boot(t testing.TB) {
	t.Helper()
	virsh(t, "start", g.Name)
	for end := time.Now().Add(bootWithin); ; {
		if b, _ := os.ReadFile(g.Log); bytes.Contains(b, []byte("count")) {
			return
		}
		if time.Now().After(end) {
			b, _ := os.ReadFile(g.Log)
			t.Fatalf("the guest did not come up within %s; its console:\n%s", bootWithin, b)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Virsh runs virsh on the guest: Virsh(t, "suspend").
func (g *Guest) Virsh(t testing.TB, verb string, args ...string) string {
	t.Helper()
	return virsh(t, append([]string{verb, g.Name}, args...)...)
}

func reachable(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", Prefix)
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := output(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// output runs a command, which has as long as a guest has to boot.
func output(name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), bootWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second // for what it started and left behind
	out, err := cmd.CombinedOutput()
	return out, errors.Join(err, ctx.Err())
}

func virsh(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, "virsh", append([]string{"-q", "-c", "qemu:///system"}, args...)...)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func disk(t testing.TB, dir, name, format string, backing bool) string {
	t.Helper()
	path := filepath.Join(dir, name+"."+format)
	args := []string{"create", "-q", "-f", format}
	if backing && format == "qcow2" {
		base := filepath.Join(dir, name+".base")
		write(t, base, strings.Repeat("the base's own content.\n", 16<<20/24))
		args = append(args, "-b", base, "-F", "raw")
	}
	run(t, "qemu-img", append(args, path, "16M")...)
	return path
}

// script counts: in a page of memory ("mark"), then on the first sector of
// every disk in turn ("count"), each write direct, then on the console. So a
// disk is at the mark or one behind it.
const script = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk qemu_fw_cfg; do
  /bin/busybox insmod /m/$m.ko 2>/dev/null
done
key=/sys/firmware/qemu_fw_cfg/by_name/opt/outguard/key/raw
if [ -f $key ]; then
  echo "key $(/bin/busybox stat -c %a $key) $(/bin/busybox od -An -v -tx1 $key | /bin/busybox tr -d ' \n')" >/dev/console
fi
for w in $(/bin/busybox cat /proc/cmdline); do
  case $w in
    fill=*) /bin/busybox dd if=/dev/urandom of=/fill bs=1M count=${w#fill=} 2>/dev/null ;;
    idle=true) idle=yes ;;
  esac
done
for d in /sys/bus/virtio/devices/*; do
  echo "virtio device $(/bin/busybox cat $d/device)" >/dev/console
done
i=0
while :; do
  i=$((i+1))
  /bin/busybox printf 'mark %09d\n' $i | /bin/busybox dd of=/mark conv=notrunc 2>/dev/null
  for d in /dev/vd?; do
    [ -b $d ] && /bin/busybox printf 'count %09d\n' $i | /bin/busybox dd of=$d bs=512 count=1 conv=sync,notrunc oflag=direct 2>/dev/null
  done
  [ $((i%10)) = 1 ] && echo count $i >/dev/console
  [ "$idle" ] && /bin/busybox sleep 86400
done
`

func initramfs(t testing.TB, modules, out string) {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"bin", "m", "proc", "sys", "dev"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	box, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	run(t, "cp", "-L", box, filepath.Join(root, "bin/busybox"))
	for _, m := range []string{"virtio/virtio_ring", "virtio/virtio", "virtio/virtio_pci_modern_dev", "virtio/virtio_pci_legacy_dev", "virtio/virtio_pci", "block/virtio_blk", "firmware/qemu_fw_cfg"} {
		path := filepath.Join(modules, "drivers", m+".ko")
		if _, err := os.Stat(path); err == nil { // else it is built in
			run(t, "cp", path, filepath.Join(root, "m"))
		}
	}
	write(t, filepath.Join(root, "init"), script)
	run(t, "chmod", "0755", filepath.Join(root, "init"))
	run(t, "sh", "-c", `cd "$1" && find . | cpio -o -H newc --quiet >"$2"`, "sh", root, out)
}

func (g *Guest) xml(c Config) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>%s</name><uuid>%s</uuid><memory unit='MiB'>%d</memory><vcpu>1</vcpu>
`, g.Name, g.UUID, cmp.Or(c.Memory, 256))
	if c.Shared || c.Vhost != "" {
		b.WriteString("<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\n")
	}
	fmt.Fprintf(&b, `<os><type arch='x86_64' machine='q35'>hvm</type><kernel>%s/vmlinuz</kernel><initrd>%s/initrd</initrd>
<cmdline>console=ttyS0 quiet panic=-1 fill=%d idle=%t</cmdline></os>
<features><acpi/><vmcoreinfo state='on'/></features><cpu mode='maximum'/><on_reboot>restart</on_reboot>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<serial type='file'><source path='%s'/></serial><memballoon model='none'/>
`, g.Dir, g.Dir, c.Fill, c.Idle, g.Log)
	for i, path := range g.Disks {
		fmt.Fprintf(&b, "<disk type='file' device='disk'><driver name='qemu' type='%s'/><source file='%s'/><target dev='vd%c' bus='virtio'/></disk>\n",
			c.Disks[i], path, 'a'+i)
	}
	if c.CDROM {
		fmt.Fprintf(&b, "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>\n")
		fmt.Fprintf(&b, "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='%s/initrd'/><target dev='sdb' bus='sata'/><readonly/></disk>\n", g.Dir)
	}
	b.WriteString(c.Devices)
	b.WriteString("</devices>\n<qemu:commandline>\n")
	arg := func(s string) {
		b.WriteString("<qemu:arg value='")
		_ = xml.EscapeText(&b, []byte(s))
		b.WriteString("'/>\n")
	}
	arg("-qmp")
	arg("unix:" + g.QMP + ",server=on,wait=off")
	if c.Vhost != "" {
		arg("-chardev")
		arg("socket,id=vs0,path=" + c.Vhost)
		arg("-device")
		arg("vhost-user-vsock-pci,chardev=vs0,bus=pcie.0,addr=0x10")
	}
	b.WriteString("</qemu:commandline></domain>\n")
	return b.String()
}
