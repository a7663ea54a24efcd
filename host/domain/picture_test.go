package domain

import (
	"bytes"
	"errors"
	"image"
	"image/color"
	imagepng "image/png"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"libvirt.org/go/libvirtxml"
)

func TestPicture(t *testing.T) {
	ppm := append([]byte("P6\n2 1\n255\n"), 255, 0, 0, 0, 0, 255)
	again, err := png(ppm)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{ppm, again} {
		out, err := png(b)
		if err != nil {
			t.Fatal(err)
		}
		img, err := imagepng.Decode(bytes.NewReader(out))
		if err != nil || img.Bounds() != image.Rect(0, 0, 2, 1) || color.RGBAModel.Convert(img.At(1, 0)) != (color.RGBA{0, 0, 255, 255}) {
			t.Errorf("%v, %v", img, err)
		}
	}
	for _, bad := range []string{"", "P6", "P6\n2 1\n255\nabc", "P6\n2 1\n255\nabcdefg", "P6\n-1 -1\n255\nabc", "P6\n0 0\n255\n", "P6\n99999999999 99999999999\n255\n", "P6\n2147483647 2147483647\n255\nabc",
		"P6\n2 1\n65535\nabcdefabcdef", "GIF89a", "<svg/>", string(again[:len(again)/2])} {
		if out, err := png([]byte(bad)); !errors.Is(err, errPicture) {
			t.Errorf("%.40q: %d bytes, %v", bad, len(out), err)
		}
	}
}

func FuzzPicture(f *testing.F) {
	ppm := append([]byte("P6\n2 1\n255\n"), 255, 0, 0, 0, 0, 255)
	again, _ := png(ppm)
	f.Add(ppm)
	f.Add(again)
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := png(b)
		if (err == nil) != (len(out) > 0) {
			t.Errorf("%d bytes beside %v", len(out), err)
		}
	})
}

func TestBoundedWriter(t *testing.T) {
	w := &bounded{left: 10}
	for range 3 {
		if n, err := w.Write([]byte("123456")); n != 6 || err != nil {
			t.Error(n, err)
		}
	}
	if w.err == nil || w.Len() != 6 {
		t.Errorf("%d bytes, %v", w.Len(), w.err)
	}
}

func TestConsoleFile(t *testing.T) {
	for text, want := range map[string]string{
		`<domain/>`: "",
		`<domain><devices><serial type='pty'/></devices></domain>`:                                                              "",
		`<domain><devices><serial type='file'><source path='/var/log/a'/></serial></devices></domain>`:                          "/var/log/a",
		`<domain><devices><serial type='pty'><log file='/var/log/b' append='on'/></serial></devices></domain>`:                  "/var/log/b",
		`<domain><devices><serial type='pty'/><console type='file'><source path='/var/log/c'/></console></devices></domain>`:    "/var/log/c",
		`<domain><devices><serial type='unix'><source mode='bind' path='/s'/></serial><console type='pty'/></devices></domain>`: "",
	} {
		var d libvirtxml.Domain
		if err := d.Unmarshal(text); err != nil {
			t.Fatal(err)
		}
		if got := consoleFile(&d); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestReadEnd(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, "long")
	if err := os.WriteFile(long, []byte(strings.Repeat("x", 100)+"the end"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := readEnd(long, 7); err != nil || string(b) != "the end" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := readEnd(long, 1000); err != nil || len(b) != 107 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	fifo, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "link")
	if err := errors.Join(syscall.Mkfifo(fifo, 0o600), os.Symlink(long, link)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, link, dir, filepath.Join(dir, "none")} {
		if b, err := readEnd(path, 7); err == nil {
			t.Errorf("%s: %q", path, b)
		}
	}
}
