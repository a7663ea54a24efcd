package domain

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// TestFifoForAnEnrolment: what the monitor's user puts in place of an enrolment
// does not hold root up.
func TestFifoForAnEnrolment(t *testing.T) {
	dir := t.TempDir()
	d := Domain{UUID: uuid.New()}
	if err := os.Mkdir(filepath.Join(dir, enrollDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, file(d)), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, read := range map[string]func() error{
		"enroll": func() error { _, err := (&plan{root: root}).enrolment(d); return err },
		"list":   func() error { _, err := Enrolments(filepath.Join(dir, enrollDir)); return err },
	} {
		done := make(chan error, 1)
		go func() { done <- read() }()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s waits for the fifo", name)
		}
	}
}

func TestSocketDir(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("gives directories to other users: root")
	}
	p := &plan{owner: ids{4001, 4002}, qemu: ids{4003, 4004}}
	type as struct {
		uid, gid int
		mode     fs.FileMode
	}
	shared := as{4001, 4004, socketDirMode}
	for name, c := range map[string]struct{ before, want as }{
		"missing":                  {want: shared},
		"the monitor came first":   {as{4001, 4002, 0o711}, shared},
		"someone has seen to it":   {as{4001, 4005, 0o770}, as{4001, 4005, 0o770}},
		"it is not the monitor's":  {as{0, 0, 0o755}, as{0, 0, 0o755}},
		"as systemd-tmpfiles does": {shared, shared},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "run", "vsock")
			if c.before.mode != 0 {
				if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chown(dir, c.before.uid, c.before.gid), os.Chmod(dir, c.before.mode)); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.socketDir(dir); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Stat(dir, &st); err != nil {
				t.Fatal(err)
			}
			fi, err := os.Stat(dir)
			if err != nil {
				t.Fatal(err)
			}
			if got := (as{int(st.Uid), int(st.Gid), fi.Mode() &^ fs.ModeDir}); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
	t.Run("a link", func(t *testing.T) {
		elsewhere, dir := t.TempDir(), filepath.Join(t.TempDir(), "vsock")
		if err := errors.Join(os.Chown(elsewhere, 4001, 4002), os.Symlink(elsewhere, dir)); err != nil {
			t.Fatal(err)
		}
		if err := p.socketDir(dir); err == nil {
			t.Error("followed")
		}
	})
}

func TestAppArmor(t *testing.T) {
	for text, want := range map[string]bool{
		`<capabilities><host><secmodel><model>apparmor</model></secmodel><secmodel><model>dac</model></secmodel></host></capabilities>`: true,
		`<capabilities><host><secmodel><model>none</model></secmodel><secmodel><model>dac</model></secmodel></host></capabilities>`:     false,
	} {
		caps, err := parseCapabilities(text)
		if err != nil || caps.confines("apparmor") != want {
			t.Errorf("%v, %v, want %v", caps, err, want)
		}
	}
	e := testEnrolment(VhostUser)
	e.Vhost = "/run/a *.vhost"
	for _, want := range []string{"  \"/var/lib/outguard/keys/k.key\" r,\n", "  \"/run/a \\*.vhost\" rw,\n"} {
		if got := e.appArmor(); !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if got := testEnrolment(KernelVsock).appArmor(); strings.Contains(got, "rw,") {
		t.Errorf("kernel vsock needs no socket:\n%s", got)
	}
}

// TestSnippet: the guest's script is one, and adds bpf to the security modules
// that run without taking any away.
func TestSnippet(t *testing.T) {
	text := testEnrolment(KernelVsock).Snippet()
	check := exec.CommandContext(t.Context(), "sh", "-n")
	check.Stdin = strings.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	from, to := strings.Index(text, "lsm="), strings.Index(text, "esac\n")
	if from < 0 || to < from {
		t.Fatal("the snippet decides nothing")
	}
	for lsm, want := range map[string]string{
		"lockdown,capability,landlock,yama,apparmor,tomoyo,bpf": "",
		"lockdown,capability,yama,apparmor":                     `GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX lsm=lockdown,capability,yama,apparmor,bpf"` + "\n",
		"capability,nobpf":                                      `GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX lsm=capability,nobpf,bpf"` + "\n",
		"":                                                      "",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "lsm"), []byte(lsm), 0o600); err != nil {
			t.Fatal(err)
		}
		part := strings.NewReplacer("/sys/kernel/security", dir, "/etc/default", dir, "update-grub", "touch "+dir+"/updated").Replace(text[from : to+len("esac\n")])
		if out, err := exec.CommandContext(t.Context(), "sh", "-euc", part).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		got, _ := os.ReadFile(filepath.Join(dir, "grub.d", "outguard.cfg"))
		_, err := os.Stat(filepath.Join(dir, "updated"))
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%q: wrote %q, want %q; update-grub: %v", lsm, got, want, err)
		}
	}
}

// TestUnitIsThePackages: what is told to a guest without the package is the service
// that the package has, but for where the agent is and what it is told.
func TestUnitIsThePackages(t *testing.T) {
	const packaged, told = "/usr/sbin/outguard-agent $OUTGUARD_AGENT_OPTIONS", "/usr/local/sbin/outguard-agent"
	text, err := os.ReadFile("../../guest/deploy/outguard-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for line := range strings.Lines(string(text)) {
		if line != "\n" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "EnvironmentFile=") {
			want.WriteString(line)
		}
	}
	if strings.Count(want.String(), packaged) != 1 {
		t.Fatalf("the package's service does not run %s:\n%s", packaged, want.String())
	}
	for _, transport := range []Transport{KernelVsock, Serial} {
		e := testEnrolment(transport)
		if got, want := e.unit(), strings.Replace(want.String(), packaged, told+e.flags(), 1); got != want {
			t.Errorf("%s: the guest is told\n%s\nand the package has\n%s", transport, got, want)
		}
		if !strings.Contains(e.Snippet(), "<<'END'\n"+e.unit()+"END\n") {
			t.Errorf("%s: not in what the guest is told:\n%s", transport, e.Snippet())
		}
	}
}
