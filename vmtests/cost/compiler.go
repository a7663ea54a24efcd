package cost

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/outguard/outguard/vmtests/image"
)

//go:embed files/words.c
var wordsSource []byte

// compiler is this machine's gcc, as far as it is needed to compile words.c: the
// programs, their libraries, the headers, and what is linked.
func compiler(ctx context.Context) ([]image.File, error) {
	dir, err := os.MkdirTemp("", "outguard-cost-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	source := filepath.Join(dir, "words.c")
	if err := os.WriteFile(source, wordsSource, 0o644); err != nil {
		return nil, err
	}
	paths := map[string]bool{}
	for _, find := range []func(context.Context, map[string]bool, string) error{programs, headers, objects} {
		if err := find(ctx, paths, source); err != nil {
			return nil, fmt.Errorf("compiler for the guest: %w", err)
		}
	}
	files := []image.File{{Path: "/srv/words.c", Mode: 0o644, Data: wordsSource}}
	for path := range paths {
		mode := fs.FileMode(0o644)
		if fi, err := os.Stat(path); err == nil && fi.Mode()&0o111 != 0 {
			mode = 0o755
		}
		f, err := image.FromHost(path, mode, path)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// programs are those that gcc runs, and their libraries, by the names that the
// loader has for them.
func programs(ctx context.Context, paths map[string]bool, _ string) error {
	for _, name := range []string{"gcc", "cc1", "collect2", "as", "ld"} {
		path, err := output(ctx, "gcc", "-print-prog-name="+name)
		if err != nil {
			return err
		}
		if !filepath.IsAbs(path) {
			if path, err = exec.LookPath(path); err != nil {
				return err
			}
		}
		paths[path] = true
		libraries, err := output(ctx, "ldd", path)
		if err != nil {
			return err
		}
		for _, word := range strings.Fields(libraries) {
			if filepath.IsAbs(word) {
				paths[word] = true
			}
		}
	}
	return nil
}

func headers(ctx context.Context, paths map[string]bool, source string) error {
	rule, err := output(ctx, "gcc", "-O2", "-M", source)
	if err != nil {
		return err
	}
	for _, word := range strings.Fields(strings.ReplaceAll(rule, "\\\n", " ")) {
		if filepath.IsAbs(word) && word != source {
			paths[filepath.Clean(word)] = true
		}
	}
	return nil
}

// objects are what ld is given, and what its scripts name.
func objects(ctx context.Context, paths map[string]bool, _ string) error {
	for _, name := range []string{
		"Scrt1.o", "crti.o", "crtn.o", "crtbeginS.o", "crtendS.o", "libgcc.a", "libgcc_s.so", "libgcc_s.so.1",
		"libc.so", "libc_nonshared.a", "liblto_plugin.so",
	} {
		path, err := output(ctx, "gcc", "-print-file-name="+name)
		if err != nil {
			return err
		}
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		path = filepath.Clean(path)
		paths[path] = true
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(text, []byte("/* GNU ld script")) {
			continue
		}
		for _, word := range strings.Fields(string(text)) {
			if filepath.IsAbs(word) && word != "/*" {
				paths[word] = true
			}
		}
	}
	return nil
}
