package main

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// large takes a guest a second to digest, and is more than is digested when it is
// opened (DIGEST_LIMIT in guest/bpf/file.h).
const large, most = 65 << 20, 400

// stalls maps a large file to be run, and opens small ones while it is digested:
// their records do not wait for its.
func (s *stage) stalls() error {
	path, err := s.put("stall/large", nil)
	if err != nil {
		return err
	}
	if err := os.Truncate(path, large); err != nil {
		return err
	}
	names := make([]string, most)
	for i := range names {
		if names[i], err = s.put(fmt.Sprintf("stall/%03d", i), nil); err != nil {
			return err
		}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var mapping atomic.Bool
	mapping.Store(true)
	done := make(chan error)
	go func() {
		_, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
		mapping.Store(false)
		done <- err
	}()
	n := 0
	for ; n < most && mapping.Load(); n++ {
		time.Sleep(5 * time.Millisecond)
		if err := open(names[n]); err != nil {
			return err
		}
	}
	if err := <-done; err != nil {
		return err
	}
	if n < 8 {
		return fmt.Errorf("mapped a large file in the time of %d opens", n)
	}
	const readOnly = `"flags":32768,`
	fmt.Printf("before & %s & \"path\":\"%s\" & %s & %s & \"path\":\"%s\" & \"prot\":5\n", opened, names[n/2], readOnly, mapped, path)
	return nil
}
