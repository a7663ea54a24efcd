// SPDX-License-Identifier: Apache-2.0

// Package kerneltypes reads what the running kernel says of its own types, as far as
// programs ask for it. A kernel describes a hundred thousand types in five
// megabytes, and programs touch some hundred of them: the others are left out
// where they are read, so that they never lie in the agent's memory.
//
//	BTF, as it is read and as it is left
//
//	header   magic 0xeb9f, version, flags, its length; where types and strings are
//	types    12 bytes each (name, kind and count, size or type), and what its kind
//	         and count say; numbered in order, from 1
//	strings  each ended by a zero; a name is an offset
//
// A type that nobody asked for becomes an empty one of 12 bytes, so that the
// numbers of the others stay the kernel's: programs are attached, and call the
// kernel, by them.
package kerneltypes

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"

	"github.com/cilium/ebpf/btf"
)

const vmlinux = "/sys/kernel/btf/vmlinux"

// Types are those of the running kernel, and a cache from which programs are
// loaded with them.
type Types struct {
	*btf.Spec
	Cache *btf.Cache
}

// Read returns the kernel's types of those names, with what they hold. Of what
// they point to it has kind, name and size, and of nothing else anything.
func Read(names map[string]bool) (*Types, error) {
	raw, err := read(names)
	if err != nil {
		return nil, err
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("read what was left: %w", err)
	}
	t := &Types{spec, btf.NewCache()}
	return t, t.fill()
}

// ReadAll returns all of the kernel's types: also those of a kernel that tells
// them elsewhere, in a file of its debug symbols.
func ReadAll() (*Types, error) {
	cache := btf.NewCache()
	spec, err := cache.Kernel()
	if err != nil {
		return nil, err
	}
	return &Types{spec, cache}, nil
}

func read(names map[string]bool) ([]byte, error) {
	f, err := os.Open(vmlinux)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Trim(f, names)
}

// fill makes the cache have the types. The library reads all of the kernel's
// into it and knows no other way, so the field is set from here; a test holds
// that it is still what it was.
func (t *Types) fill() error {
	f := reflect.ValueOf(t.Cache).Elem().FieldByName("kernelTypes")
	if !f.IsValid() || f.Type() != reflect.TypeFor[*btf.Spec]() {
		return fmt.Errorf("give types to the library: %w", errors.ErrUnsupported)
	}
	*(**btf.Spec)(f.Addr().UnsafePointer()) = t.Spec
	return nil
}
