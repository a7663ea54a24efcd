package domain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"
)

// besideWithin bounds what is taken beside memory and disks: the VM stands.
const besideWithin = 10 * time.Second

// maxConsole is how much of a console's end is taken, bytes.
const maxConsole = 4 << 20

// errNone is of what the domain does not have.
var errNone = errors.New("the domain has none")

// beside takes what is good to have: the console's log, a picture of the display,
// and what the domain runs on. What cannot be taken is listed as left, and is no
// reason to have no capture.
func (k *taking) beside(ctx context.Context, s *Snapshot) error {
	ctx, cancel := context.WithTimeout(ctx, besideWithin)
	defer cancel()
	for _, part := range []struct {
		name string
		take func(context.Context) (File, error)
	}{{"console", k.console}, {"screen", k.screen}} {
		began := time.Now()
		f, err := part.take(ctx)
		if err != nil {
			s.Left = append(s.Left, Left{Target: part.name, Why: err.Error()})
			continue
		}
		f.Took = time.Since(began)
		s.Files = append(s.Files, f)
	}
	s.Facts = append(k.facts(ctx), s.Facts...)
	return nil
}

// put writes a file of the capture.
func (k *taking) put(name string, b []byte) (string, error) {
	path, err := k.file(name)
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, b, 0o600)
}

// console copies the end of the file that a serial port or a console writes, or
// that libvirt logs it to.
func (k *taking) console(context.Context) (File, error) {
	from := consoleFile(&k.def)
	if from == "" {
		return File{}, fmt.Errorf("console's file: %w", errNone)
	}
	b, err := readEnd(from, maxConsole)
	if err != nil {
		return File{}, err
	}
	path, err := k.put("console.log", b)
	return File{Kind: "console", Path: path, Format: "text", Source: from, Size: int64(len(b))}, err
}

// consoleFile is where the first console with a file has it, "" where none has.
func consoleFile(d *libvirtxml.Domain) string {
	if d.Devices == nil {
		return ""
	}
	of := func(source *libvirtxml.DomainChardevSource, log *libvirtxml.DomainChardevLog) string {
		switch {
		case log != nil:
			return log.File
		case source != nil && source.File != nil:
			return source.File.Path
		}
		return ""
	}
	for i := range d.Devices.Serials {
		if path := of(d.Devices.Serials[i].Source, d.Devices.Serials[i].Log); path != "" {
			return path
		}
	}
	for i := range d.Devices.Consoles {
		if path := of(d.Devices.Consoles[i].Source, d.Devices.Consoles[i].Log); path != "" {
			return path
		}
	}
	return ""
}

// readEnd reads at most the last so many bytes of a regular file, and waits on
// nothing else.
func readEnd(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(filepath.Clean(path), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	return io.ReadAll(io.NewSectionReader(f, max(0, fi.Size()-most), most))
}

// screen has the domain's first display drawn.
func (k *taking) screen(ctx context.Context) (File, error) {
	if k.def.Devices == nil || len(k.def.Devices.Videos) == 0 || k.def.Devices.Videos[0].Model.Type == "none" {
		return File{}, fmt.Errorf("display: %w", errNone)
	}
	b, err := k.draw(ctx) // asked again, it comes
	for again := 0; err != nil && ctx.Err() == nil && again < 4; again++ {
		b, err = k.draw(ctx)
	}
	if err != nil {
		return File{}, fmt.Errorf("draw the display: %w", err)
	}
	path, err := k.put("screen.png", b)
	return File{Kind: "screen", Path: path, Format: "png", Size: int64(len(b))}, err
}

// drawWithin is how long a picture may take.
const drawWithin = 10 * time.Second

// draw asks for the picture once, over a connection of its own. Now and then what
// comes is empty; and where one packet more comes as the stream ends, the library
// waits for itself and the connection is of no more use, not even to be closed.
func (k *taking) draw(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, drawWithin)
	defer cancel()
	own := New(&k.c.opts)
	defer func() { go own.Close() }()
	w := &bounded{left: maxPicture}
	err := own.call(ctx, own.of(k.vm), func(l *libvirt.Libvirt) error {
		_, err := l.DomainScreenshot(own.handle(k.vm), w, 0, 0)
		if said := (libvirt.Error{}); w.Len() > 0 && !errors.As(err, &said) {
			return nil // the library looks for the answer in the stream's last packet, which is empty
		}
		return err
	})
	if err == nil {
		err = w.err
	}
	if err != nil {
		return nil, err
	}
	return png(w.Bytes())
}

// bounded keeps so many bytes; what comes after them is an error, of which its
// writer hears nothing: the stream goes on to its end.
type bounded struct {
	bytes.Buffer
	left int
	err  error
}

func (w *bounded) Write(b []byte) (int, error) {
	if len(b) > w.left {
		w.err, w.left = fmt.Errorf("more than %d bytes", maxPicture), 0
		return len(b), nil
	}
	w.left -= len(b)
	return w.Buffer.Write(b)
}

// facts say what the domain runs on. What is not known is left out.
func (k *taking) facts(ctx context.Context) (out []Fact) {
	add := func(name, value string) {
		if value != "" {
			out = append(out, Fact{name, value})
		}
	}
	var host [3]string // read only where the call has ended
	err := k.c.call(ctx, &k.c.lines[0], func(l *libvirt.Libvirt) error {
		if v, err := l.ConnectGetLibVersion(); err == nil {
			host[0] = dotted(v)
		}
		if v, err := l.ConnectGetVersion(); err == nil {
			host[1] = dotted(v)
		}
		if name, err := l.ConnectGetHostname(); err == nil {
			host[2] = name
		}
		return nil
	})
	if err == nil {
		add("libvirt", host[0])
		add("qemu", host[1])
		add("host", host[2])
	}
	d := &k.def
	add("domain", d.Type)
	if d.OS != nil && d.OS.Type != nil {
		add("machine", d.OS.Type.Machine)
	}
	if d.CPU != nil {
		add("cpu", d.CPU.Mode)
	}
	if d.VCPU != nil {
		add("vcpus", fmt.Sprint(d.VCPU.Value))
	}
	if d.Memory != nil {
		add("memory", fmt.Sprint(d.Memory.Value, " ", d.Memory.Unit))
	}
	if d.Devices != nil {
		add("emulator", d.Devices.Emulator)
	}
	return out
}

func dotted(v uint64) string { return fmt.Sprintf("%d.%d.%d", v/1000000, v/1000%1000, v%1000) }
