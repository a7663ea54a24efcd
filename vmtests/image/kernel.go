package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Kernels are the lines of stock kernels that guests are run on, oldest first:
// those of Debian 12, 13 and 14.
var Kernels = []string{"6.1", "6.12", "7.2"}

// DefaultKernel is the newest of a Debian release that is out. From 6.9 on the
// agent's records have every field; see ARCHITECTURE.md on file_post_open.
const DefaultKernel = "6.12"

// Kernel returns where .ci/install unpacked the line of kernels that
// OUTGUARD_KERNEL names, or else DefaultKernel.
func Kernel(cache string) (line, dir string, err error) {
	line = orDefault(os.Getenv("OUTGUARD_KERNEL"), DefaultKernel)
	if !slices.Contains(Kernels, line) {
		return "", "", fmt.Errorf("OUTGUARD_KERNEL=%s: not one of %s", line, strings.Join(Kernels, ", "))
	}
	dir = filepath.Join(cache, "kernel", line)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("guest kernel %s: %s is not there (.ci/install kernels fetches it)", line, dir)
	} else if err != nil {
		return "", "", fmt.Errorf("guest kernel %s: %w", line, err)
	}
	return line, dir, nil
}

// kernelFiles finds the kernel and its modules below dir, which a package was
// unpacked to. Where they stand differs between Debian's releases.
func kernelFiles(dir string) (release, vmlinuz, modules string, err error) {
	var found []string
	for _, pattern := range []string{"boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz"} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return "", "", "", err
		}
		found = append(found, paths...)
	}
	if len(found) != 1 {
		return "", "", "", fmt.Errorf("kernel in %s: %d files vmlinuz, want 1 (.ci/install vm fetches it)", dir, len(found))
	}
	vmlinuz = found[0]
	if release = strings.TrimPrefix(filepath.Base(vmlinuz), "vmlinuz-"); release == "vmlinuz" {
		release = filepath.Base(filepath.Dir(vmlinuz))
	}
	for _, d := range []string{"lib/modules", "usr/lib/modules"} {
		modules = filepath.Join(dir, d, release)
		if _, err := os.Stat(modules); err == nil {
			return release, vmlinuz, modules, nil
		}
	}
	return "", "", "", fmt.Errorf("kernel %s in %s has no modules", release, dir)
}
