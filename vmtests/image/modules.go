package image

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// guestModules are what a guest needs of a stock kernel, by name; what they
// depend on is found in the modules themselves. A name that the kernel has
// built in, or does not have as a file, is left out.
var guestModules = []string{
	"virtio_pci", "virtio_blk", "virtio_net", "virtio_console",
	"crc32c_generic", "ext4",
	"qemu_fw_cfg", "overlay",
	"vmw_vsock_virtio_transport", "vsock_loopback",
}

// required are those without which no guest of ours gets anywhere, and which
// no kernel of Debian's has built in.
var requiredModules = map[string]bool{"virtio_blk": true, "ext4": true, "qemu_fw_cfg": true}

// module is one file of the kernel package, as the kernel is to be given it.
type module struct {
	name string
	data []byte
}

// ModuleFiles are modules of the kernel package in dir as files of a guest, for
// its root to load: /usr/lib/outguard-tests/NAME.ko. What they depend on comes
// before each.
func ModuleFiles(dir string, names ...string) ([]File, error) {
	_, _, modules, err := kernelFiles(dir)
	if err != nil {
		return nil, err
	}
	order, err := moduleOrder(modules, names)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, m := range order {
		files = append(files, File{Path: "/usr/lib/outguard-tests/" + m.name + ".ko", Mode: 0o644, Data: m.data})
	}
	return files, nil
}

// moduleOrder returns the modules wanted and all that they depend on, each
// after its own dependencies, which is the order for insmod.
func moduleOrder(dir string, want []string) ([]module, error) {
	files, err := moduleFiles(dir)
	if err != nil {
		return nil, err
	}
	var order []module
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		path, ok := files[name]
		if !ok && requiredModules[name] {
			return fmt.Errorf("module %s: %w under %s", name, fs.ErrNotExist, dir)
		}
		if !ok {
			return nil
		}
		data, err := readModule(path)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		deps, err := moduleDeps(data)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range deps {
			if err := add(d); err != nil {
				return err
			}
		}
		order = append(order, module{name, data})
		return nil
	}
	for _, name := range want {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleFiles maps the names of all modules under dir to their files.
func moduleFiles(dir string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		name, ok := strings.CutSuffix(strings.TrimSuffix(path, ".xz"), ".ko")
		if err == nil && ok && d.Type().IsRegular() {
			files[moduleName(filepath.Base(name))] = path
		}
		return err
	})
	return files, err
}

// moduleName folds the two spellings that the kernel takes for the same.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// readModule reads a module's file. A compressed one is unpacked, since not
// every guest's insmod can.
func readModule(path string) ([]byte, error) {
	if !strings.HasSuffix(path, ".xz") {
		return os.ReadFile(path)
	}
	data, err := exec.Command("xz", "--decompress", "--stdout", path).Output()
	if err != nil {
		return nil, fmt.Errorf("xz %s: %w", path, err)
	}
	return data, nil
}

// moduleDeps reads "depends=" out of a module's .modinfo section.
func moduleDeps(module []byte) ([]string, error) {
	e, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	s := e.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	var deps []string
	for field := range bytes.SplitSeq(info, []byte{0}) {
		list, ok := strings.CutPrefix(string(field), "depends=")
		if !ok || list == "" {
			continue
		}
		for _, d := range strings.Split(list, ",") {
			deps = append(deps, moduleName(d))
		}
	}
	return deps, nil
}
