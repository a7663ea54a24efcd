package domain

import "fmt"

const (
	page   = 4096
	legacy = 0xa0000 // what lies from here to 1 MiB the guest switches between RAM, ROM and a display
	mebi   = 1 << 20
	high   = 4 << 30

	// A copied core is its head, the RAM's file from ramAt on, and behind it the
	// ranges that are in no file; so the RAM is copied before the head is known.
	ramAt     = 16 << 20
	maxPeeked = 256 << 20 // a display has 16 MiB, up to 128
)

// piece is a part of a core's content.
type piece struct {
	from, size uint64
	to         int64 // in the core
}

// ofRAM is what of the RAM's file is copied.
func ofRAM(ram uint64) []piece {
	return []piece{{0, legacy, ramAt}, {mebi, ram - mebi, ramAt + mebi}}
}

// memoryMap says where in a copied core the ranges of a guest's memory are.
type memoryMap struct {
	at     []int64 // each range's content
	peeked []piece // what is in no file and above 1 MiB, from guest-physical addresses
	low    uint64  // of the RAM below 4 GiB
	above  uint64  // of the RAM from 4 GiB on
	size   int64   // of the core
}

// mapMemory finds the ranges of a PC's memory in the one file that its RAM is:
// QEMU maps the file's beginning below 4 GiB, but for the range from 640 KiB to
// 1 MiB, and its end from 4 GiB on. That both together are the whole file is
// checked here; that they hold the same, by sample: a range of the map is one of
// QEMU's memory as well. What else there is, ROMs and a display's memory, is in no
// file.
// Source: QEMU, hw/i386/pc.c (pc_memory_init), hw/i386/pc_q35.c, pc_piix.c.
func mapMemory(loads []load, ram uint64) (*memoryMap, error) {
	m := &memoryMap{size: ramAt + int64(pages(ram))}
	if m.low, m.above = split(loads, ram); m.low < mebi || m.low+m.above != ram {
		return nil, fmt.Errorf("its memory map has %#x bytes below 4 GiB and %#x above, its RAM's file %#x", m.low, m.above, ram)
	}
	var peeked uint64
	for _, l := range loads {
		switch {
		case l.start < m.low:
			m.at = append(m.at, ramAt+int64(l.start))
		case l.start == high:
			m.at = append(m.at, ramAt+int64(m.low))
		default:
			m.at, m.peeked = append(m.at, m.size), append(m.peeked, piece{l.start, l.size, m.size})
			m.size += int64(pages(l.size))
			peeked += l.size
		}
		if peeked > maxPeeked {
			return nil, fmt.Errorf("more than %d MiB of its memory are not in its RAM's file", maxPeeked>>20)
		}
	}
	return m, nil
}

// split measures the RAM that begins at 4 GiB, and that below, which ends where
// both are all of it, or at the first gap above 1 MiB.
func split(loads []load, ram uint64) (low, above uint64) {
	for _, l := range loads {
		if l.start == high {
			above = l.size
		}
	}
	for _, l := range loads {
		overLegacy := low >= legacy && low <= mebi && l.start <= mebi
		if l.start >= high || low+above >= ram || l.start > low && !overLegacy {
			break
		}
		low = l.end()
	}
	return low, above
}

func pages(n uint64) uint64 { return (n + page - 1) &^ (page - 1) }
