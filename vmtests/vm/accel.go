package vm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/outguard/outguard/vmtests/image"
)

// proofTime is how long a stock kernel has to show its first line under KVM.
// Where KVM works it takes well under a second.
const proofTime = 8 * time.Second

// proveAccelerator picks KVM where a stock kernel is seen to start under it.
// That /dev/kvm is there proves nothing: it can be there and hang every guest.
// The answer is remembered for as long as machine, QEMU and kernel stay.
func proveAccelerator(ctx context.Context, cache string, img *image.Image) (Choice, error) {
	c := Choice{What: "accelerator", Name: "tcg"}
	if _, err := os.Stat("/dev/kvm"); errors.Is(err, fs.ErrNotExist) {
		c.Why = "there is no /dev/kvm"
		return c, nil
	}
	key, path := machineKey(ctx, img), filepath.Join(cache, "accelerator-"+img.Release)
	if text, err := os.ReadFile(path); err == nil {
		if name, ok := strings.CutPrefix(strings.TrimSpace(string(text)), key+" "); ok && (name == "kvm" || name == "tcg") {
			c.Name, c.Why = name, proofText(name)+", as proven before"
			return c, nil
		}
	}
	if kernelSpeaks(ctx, "kvm", "host", img.Kernel, proofTime) {
		c.Name = "kvm"
	}
	if err := ctx.Err(); err != nil {
		return c, err
	}
	c.Why = proofText(c.Name)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return c, err
	}
	return c, os.WriteFile(path, []byte(key+" "+c.Name+"\n"), 0o644)
}

func proofText(name string) string {
	if name == "kvm" {
		return "a stock kernel starts under KVM"
	}
	return "/dev/kvm is there, but a stock kernel does not start under it"
}

// machineKey names what the answer depends on.
func machineKey(ctx context.Context, img *image.Image) string {
	h := sha256.New()
	for _, path := range []string{"/proc/sys/kernel/osrelease", "/proc/sys/kernel/random/boot_id"} {
		b, _ := os.ReadFile(path)
		h.Write(b)
	}
	out, _ := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
	h.Write(out)
	io.WriteString(h, img.Release)
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// kernelSpeaks starts a kernel with nothing to boot from and reports whether
// its first console line comes in time.
func kernelSpeaks(ctx context.Context, accel, cpu, kernel string, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot",
		"-machine", "q35", "-accel", accel, "-cpu", cpu, "-m", "256", "-display", "none", "-serial", "stdio",
		"-kernel", kernel, "-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		return false
	}
	found := false
	lines := bufio.NewScanner(out)
	for !found && lines.Scan() {
		found = bytes.Contains(lines.Bytes(), []byte("Linux version"))
	}
	cancel()
	cmd.Wait()
	return found
}
