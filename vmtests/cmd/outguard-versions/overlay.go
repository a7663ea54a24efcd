package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// overlay is one, and the directories that it is made of.
type overlay struct{ lower, upper, merged string }

// inOverlay changes files of the layer below: the first change of each makes
// another file of it, in the layer above, under the same name.
func inOverlay(dir string, out io.Writer) error {
	o := overlay{filepath.Join(dir, "lower"), filepath.Join(dir, "upper"), filepath.Join(dir, "merged")}
	work := filepath.Join(dir, "work")
	for _, d := range []string{o.lower, o.upper, o.merged, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	var steps []func() error
	for _, u := range uses {
		for _, c := range changes {
			f, err := o.file(c.name+"-"+u.event, out)
			if err != nil {
				return err
			}
			steps = append(steps, func() error { return f.between(c, u) })
		}
		f, err := o.file("beneath-"+u.event, out)
		if err != nil {
			return err
		}
		steps = append(steps, func() error { return o.beneath(f, u) })
	}
	if err := unix.Mount("overlay", o.merged, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", o.lower, o.upper, work)); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return withinTick(o.merged, out, maps) // whose digests nothing keeps
}

// file makes a file in the layer below, and names it as the overlay does.
func (o overlay) file(name string, out io.Writer) (*file, error) {
	f := &file{path: filepath.Join(o.lower, name), out: out}
	err := f.create()
	f.path = filepath.Join(o.merged, name)
	return f, err
}

// beneath changes a file in the layer above, behind the overlay's back.
func (o overlay) beneath(f *file, u use) error {
	if err := f.between(changes[0], u); err != nil {
		return err
	}
	f.next()
	if err := os.WriteFile(filepath.Join(o.upper, filepath.Base(f.path)), f.data, 0o755); err != nil {
		return err
	}
	return f.use(u)
}
