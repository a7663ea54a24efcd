// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/outguard/outguard/guest/sensor"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
)

func readKey(path string) (key [vsockproto.KeySize]byte, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return key, fmt.Errorf("read key: %w: run outguard enroll DOMAIN on the host, start the domain anew, "+
			"and load the module qemu_fw_cfg", err)
	}
	if err != nil {
		return key, fmt.Errorf("read key: %w", err)
	}
	if len(b) != len(key) {
		return key, fmt.Errorf("read key: %s has %d bytes, a key has %d: enroll the domain anew", path, len(b), len(key))
	}
	return [vsockproto.KeySize]byte(b), nil
}

// introduction is what stays the same in every Hello, and who knows the rest.
type introduction struct {
	vsockproto.Hello
	hooks func() []vsockproto.Hook
}

func introduce(s *sensor.Sensor) (*introduction, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	boot, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(id)), "-", ""))
	if err != nil || len(boot) != 16 {
		return nil, fmt.Errorf("boot id %q: %w", id, vsockproto.ErrInvalid)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	release, _, _ := bytes.Cut(u.Release[:], []byte{0})
	return &introduction{vsockproto.Hello{
		BootID: [16]byte(boot),
		CPUs:   uint32(s.CPUs()),
		Kernel: string(release),
		Build:  version,
	}, s.Hooks}, nil
}

// hello is a Hello as of now. The link fills in the rest.
func (i *introduction) hello() *vsockproto.Hello {
	h := i.Hello
	h.Hooks = i.hooks()
	h.BootNs, h.RealNs = clock()
	return &h
}

func clock() (bootNs, realNs uint64) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, 0
	}
	return uint64(t.Nano()), uint64(time.Now().UnixNano())
}

// What is kept for the next agent of this boot: a byte that says so, the
// session, its secret.
const stateSize = 1 + 16 + vsockproto.KeySize

func packState(s link.State) []byte {
	b := make([]byte, 0, stateSize)
	b = append(b, 1)
	b = append(b, s.Session[:]...)
	return append(b, s.Secret[:]...)
}

func unpackState(b []byte) (s link.State, ok bool) {
	if len(b) < stateSize || b[0] != 1 {
		return s, false
	}
	copy(s.Session[:], b[1:])
	copy(s.Secret[:], b[1+len(s.Session):])
	return s, true
}

// restore makes the agent go on with the session of the one before it.
func restore(a *link.Agent, s *sensor.Sensor) error {
	b, err := s.Saved()
	if err != nil {
		return err
	}
	if state, ok := unpackState(b); ok {
		a.Restore(state)
	}
	return nil
}

func attached(hooks []vsockproto.Hook) (n int) {
	for _, h := range hooks {
		if h.Attached {
			n++
		}
	}
	return n
}
