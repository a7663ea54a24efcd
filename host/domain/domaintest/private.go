package domaintest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
)

// Private is a libvirtd of a test's own, which the test may kill: it has its
// process and mount namespaces, and directories there that no other libvirtd
// sees. Whatever is left in them ends with the test.
type Private struct {
	t      testing.TB
	dir    string
	sh     io.Writer
	Socket string
}

// NewPrivate starts one. It needs root, libvirtd and QEMU, but no libvirtd that
// runs.
func NewPrivate(t testing.TB) *Private {
	t.Helper()
	if _, bench := t.(*testing.B); !bench && !promised() {
		t.Skip("uses libvirt: set OUTGUARD_REQUIRE=libvirt")
	}
	Require(t, os.Getuid() == 0, "not root")
	for _, name := range []string{"libvirtd", "virsh", "qemu-system-x86_64", "unshare"} {
		_, err := exec.LookPath(name)
		Require(t, err == nil, "no %s", name)
	}
	p := &Private{t: t, dir: reachable(t)}
	p.Socket = filepath.Join(p.dir, "libvirt-sock")
	// The first process of the namespace has to wait for what daemons leave to it:
	// libvirtd takes a zombie for a QEMU that has not ended.
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", "exec 3<&0; sh -s <&3 3<&- & wait $!")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close() // the shell ends, and with it all in its process namespace
		late := time.AfterFunc(endWithin, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		late.Stop()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("the private libvirtd's log:\n%s", b)
		}
	})
	p.sh = in
	p.say(setUp, p.dir)
	p.Start()
	return p
}

// endWithin is how long the shell has to come to its end of input: what it runs
// may hang.
const endWithin = 30 * time.Second

const setUp = `
for d in /run/libvirt /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do
	mkdir -p $d && mount -t tmpfs tmpfs $d
done
mkdir -p /etc/libvirt/qemu
printf 'stdio_handler = "file"\nsecurity_driver = "none"\nuser = "root"\ngroup = "root"\nremember_owner = 0\ncgroup_controllers = []\n' >/etc/libvirt/qemu.conf
printf 'unix_sock_dir = "%[1]s"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n' >/etc/libvirt/libvirtd.conf
`

// say gives the shell in the namespaces lines to run.
func (p *Private) say(format string, args ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.sh, format+"\n", args...); err != nil {
		p.t.Fatal(err)
	}
}

// Start starts libvirtd and returns when it answers.
func (p *Private) Start() {
	p.t.Helper()
	p.say("rm -f %[1]s/pid; libvirtd --daemon --config /etc/libvirt/libvirtd.conf --pid-file %[1]s/pid", p.dir)
	for end := time.Now().Add(bootWithin); p.virsh("version") != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("the private libvirtd does not answer: %v", p.virsh("version"))
		}
	}
}

// Kill kills libvirtd with SIGKILL; what it runs goes on.
func (p *Private) Kill() {
	p.t.Helper()
	p.say("kill -9 $(cat %[1]s/pid)", p.dir)
	for end := time.Now().Add(bootWithin); p.virsh("version") == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatal("the private libvirtd does not end")
		}
	}
}

// Signal sends a signal to a domain's QEMU.
func (p *Private) Signal(vm uuid.UUID, signal syscall.Signal) {
	p.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		p.t.Fatal(err)
	}
	for _, path := range all {
		b, _ := os.ReadFile(path) // it may be gone
		if !strings.Contains(string(b), "\x00-uuid\x00"+vm.String()+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil {
			err = syscall.Kill(pid, signal)
		}
		if err != nil {
			p.t.Fatal(err)
		}
		return
	}
	p.t.Fatalf("%s has no QEMU", vm)
}

func (p *Private) virsh(args ...string) error {
	uri := "qemu+unix:///system?socket=" + p.Socket
	out, err := output("virsh", append([]string{"-q", "-c", uri}, args...)...)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Virsh runs virsh on it and returns what it says.
func (p *Private) Virsh(args ...string) string {
	p.t.Helper()
	return run(p.t, "virsh", append([]string{"-q", "-c", "qemu+unix:///system?socket=" + p.Socket}, args...)...)
}

// Run starts a domain that has vCPUs and nothing that they could run, and one
// network link.
func (p *Private) Run(vm uuid.UUID, name string) {
	p.t.Helper()
	path := filepath.Join(p.dir, name+".xml")
	write(p.t, path, strings.NewReplacer("NAME", name, "UUID", vm.String()).Replace(bare))
	p.Virsh("create", path)
}

// RunWithDisk starts a domain like Run's that has a disk, qcow2 and empty, so that
// it can be saved with its memory. It ends with the test.
func (p *Private) RunWithDisk(vm uuid.UUID, name string) {
	p.t.Helper()
	image, path := filepath.Join(p.dir, name+".qcow2"), filepath.Join(p.dir, name+".xml")
	run(p.t, "qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
	disk := "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='" + image + "'/><target dev='vda' bus='virtio'/></disk></devices>"
	write(p.t, path, strings.NewReplacer("NAME", name, "UUID", vm.String(), "</devices>", disk).Replace(bare))
	p.Virsh("define", path)
	p.t.Cleanup(func() { p.Virsh("undefine", name, "--snapshots-metadata") })
	p.Virsh("start", name)
	p.t.Cleanup(func() { p.Virsh("destroy", name) })
}

const bare = `<domain type='qemu'><name>NAME</name><uuid>UUID</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model='none'/>
<interface type='user'><mac address='52:54:00:00:00:01'/><model type='e1000e'/></interface></devices></domain>
`

// BareMAC is the address of the network link of a domain that Run started.
const BareMAC = "52:54:00:00:00:01"
