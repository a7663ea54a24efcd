package main

import (
	"errors"

	"golang.org/x/sys/unix"
)

// sparse maps a memfd of that name to be run that is as long as a file can be, and has
// nothing in it.
func sparse(name string) error {
	fd, err := unix.MemfdCreate(name, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 1<<62); err != nil {
		return err
	}
	b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	return errors.Join(err, unix.Munmap(b))
}
