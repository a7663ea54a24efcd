package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"

	"github.com/outguard/outguard/plugins/engine"
)

// This test binary is its own engine.
func TestMain(m *testing.M) {
	if os.Getenv(engine.Handshake.MagicCookieKey) != "" {
		engine.Serve(prober{})
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// prober is an engine that tries what the records of a batch ask for, and
// reports how that went.
type prober struct{}

func (prober) Describe() engine.Description {
	return engine.Description{Name: "prober", Version: "1"}
}

func (prober) Judge(b *engine.Batch, report func(engine.Finding)) error {
	word, arg, _ := strings.Cut(string(b.Records), " ")
	report(engine.Finding{Rule: "prober/" + word, Severity: engine.Info, Reason: fmt.Sprint(try(word, arg))})
	return nil
}

func try(word, arg string) any {
	switch word {
	case "read":
		_, err := os.ReadFile(arg)
		return err
	case "write":
		return os.WriteFile(arg, []byte("x"), 0o600)
	case "exec":
		return exec.Command(arg).Run()
	case "listen":
		_, err := net.Listen("tcp", arg)
		return err
	case "kill":
		var pid int
		fmt.Sscan(arg, &pid)
		return syscall.Kill(pid, 0)
	case "uid":
		return fmt.Sprint(os.Getuid(), os.Getgid())
	}
	return errors.ErrUnsupported
}

func (prober) Models() []engine.Model { return nil }
func (prober) Learn(context.Context, uuid.UUID) (engine.Model, error) {
	return engine.Model{}, errors.ErrUnsupported
}
func (prober) Seal(context.Context, uuid.UUID) (engine.Model, error) {
	return engine.Model{}, errors.ErrUnsupported
}
func (prober) Checkpoint(uuid.UUID) ([]byte, error) { return nil, nil }
func (prober) Restore(uuid.UUID, []byte) error      { return nil }

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func options() *Options {
	return &Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

// ask starts an engine as cfg says and returns how its attempts went.
func ask(t *testing.T, cfg Config, opts *Options, attempts ...string) []string {
	t.Helper()
	p, err := Start(t.Context(), cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	answers := make(chan string, len(attempts))
	go func() {
		_ = p.Receive(func(v Verdict) { answers <- v.Findings[0].Reason })
		close(answers)
	}()
	var all []string
	for _, a := range attempts {
		if _, err := p.Send(&engine.Batch{Count: 1, Records: []byte(a)}, time.Now().Add(10*time.Second)); err != nil {
			t.Fatal(err)
		}
		got, more := <-answers
		if !more {
			t.Fatalf("the engine ended at %q", a)
		}
		all = append(all, got)
	}
	return all
}

func TestConfined(t *testing.T) {
	got := ask(t, Config{Path: self(t)}, options(),
		"exec /bin/true", "write "+filepath.Join(t.TempDir(), "x"), "uid", "unknown")
	if !strings.Contains(got[0], "operation not permitted") && !strings.Contains(got[0], "permission denied") {
		t.Errorf("exec: %s", got[0])
	}
	if got[1] == "<nil>" {
		t.Error("it wrote a file")
	}
	if want := fmt.Sprint(os.Getuid(), os.Getgid()); got[2] != want {
		t.Errorf("it runs as %s, want %s", got[2], want)
	}
	if got[3] != errors.ErrUnsupported.Error() {
		t.Errorf("it says %s", got[3])
	}
}

// What Landlock adds. The probe for it is the kernel's own version call.
func TestConfinedByLandlock(t *testing.T) {
	const createRuleset, versionFlag = 444, 1
	if _, _, errno := syscall.Syscall(createRuleset, 0, 0, versionFlag); errno != 0 {
		t.Skipf("no Landlock in this kernel: %v", errno)
	}
	got := ask(t, Config{Path: self(t)}, options(), "read /etc/passwd", "listen 127.0.0.1:0", fmt.Sprint("kill ", os.Getpid()))
	for i, what := range []string{"read a file", "listened", "sent a signal"} {
		if !strings.Contains(got[i], "denied") && !strings.Contains(got[i], "not permitted") {
			t.Errorf("it %s: %s", what, got[i])
		}
	}
}

// capable reports whether this process has the capability.
func capable(t *testing.T, capability uint) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		t.Fatal(err)
	}
	return caps[0].Effective>>capability&1 != 0
}

func TestOtherUser(t *testing.T) {
	if !capable(t, unix.CAP_SETUID) || !capable(t, unix.CAP_SETGID) {
		t.Skip("needs CAP_SETUID and CAP_SETGID")
	}
	// Somewhere that the other user can reach.
	dir, err := os.MkdirTemp("/tmp", "outguard-process-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "engine")
	if err := errors.Join(os.WriteFile(path, content, 0o755), os.Chmod(path, 0o755)); err != nil { // whatever the umask
		t.Fatal(err)
	}
	uid, gid := uint32(65534), uint32(65533)
	opts := options()
	opts.SocketDir = dir
	if got := ask(t, Config{Path: path, UID: &uid, GID: &gid}, opts, "uid"); got[0] != "65534 65533" {
		t.Errorf("it runs as %s", got[0])
	}
}

func TestNoNewPrivileges(t *testing.T) {
	p, err := Start(t.Context(), Config{Path: self(t)}, options())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.PID()))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("threads %v, error %v", tasks, err)
	}
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000"} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s lacks %q:\n%s", path, want, b)
			}
		}
	}
}

// A monitor with ambient capabilities hands none of them to what it starts,
// even to a binary that would not give them up.
func TestNoAmbientCapabilities(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs CAP_SETPCAP")
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		t.Fatal(err)
	}
	caps[0].Inheritable |= 1 << unix.CAP_KILL
	if _, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&caps)), 0); errno != 0 {
		t.Fatal(errno)
	}
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_KILL, 0, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	defer psx.Syscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0)
	path := filepath.Join(t.TempDir(), "engine")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ngrep CapAmb /proc/self/status\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Config{Path: path}, options())
	if err == nil || !strings.Contains(err.Error(), "CapAmb:\t0000000000000000") {
		t.Errorf("error %v", err)
	}
}

func TestOpenTo(t *testing.T) {
	dir := t.TempDir()
	if err := openTo(dir, os.Getgid()); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(dir)
	if err != nil || st.Mode().Perm() != 0o770 {
		t.Errorf("mode %v, error %v", st.Mode(), err)
	}
}

func TestCloseEndsTheProcess(t *testing.T) {
	p, err := Start(t.Context(), Config{Path: self(t)}, options())
	if err != nil {
		t.Fatal(err)
	}
	dir, pid := p.dir, p.PID()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d: %v", pid, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket directory: %v", err)
	}
	if _, err := p.Send(&engine.Batch{}, time.Time{}); err == nil {
		t.Error("a closed process took a batch")
	}
}

// An engine that is stopped still ends with Close.
func TestCloseStopped(t *testing.T) {
	p, err := Start(t.Context(), Config{Path: self(t)}, options())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(p.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { p.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("Close hangs")
	}
}

// A host that ends takes its engines along: the stream's end is theirs.
func TestEndsWithStream(t *testing.T) {
	p, err := Start(t.Context(), Config{Path: self(t)}, options())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := unix.Shutdown(p.stream.out, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if err := p.Receive(func(Verdict) {}); err != io.EOF {
		t.Errorf("receive: %v", err)
	}
}

func TestStartRefuses(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg Config
		err error
	}{
		"missing":        {Config{Path: plain + "x"}, os.ErrNotExist},
		"not executable": {Config{Path: plain}, os.ErrPermission},
		"a directory":    {Config{Path: "/"}, os.ErrPermission},
		"no checksum":    {Config{Path: self(t), SHA256: "xyz"}, ErrChecksum},
		"other checksum": {Config{Path: self(t), SHA256: strings.Repeat("00", 32)}, ErrChecksum},
		"no engine":      {Config{Path: "/bin/true"}, ErrContract},
	} {
		if _, err := Start(t.Context(), c.cfg, options()); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", name, err, c.err)
		}
	}
}
