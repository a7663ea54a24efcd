package engines

import (
	"math/bits"
	"sync"
)

// Messages that a checkpoint covers are used again: the kernel's work for fresh
// memory of the size of a batch costs more than judging it. What is not used
// again goes with the garbage.
//
// Their sizes come in steps, four from each power of two to the next.
const (
	leastMessage = 512
	sizeSteps    = 4
)

var messages [sizeSteps*12 + 1]sync.Pool // of *[]byte; of 512 bytes to 2 MiB

// sizeStep is the step of which every message has room for n bytes, and how
// much room that is.
func sizeStep(n int) (step, size int) {
	last := max(n, leastMessage) - 1
	shift := bits.Len(uint(last)) - 3
	quarter := last >> shift // 4 to 7
	return (shift-7)*sizeSteps + quarter - 3, (quarter + 1) << shift
}

// newMessage is an empty one with room for n bytes.
func newMessage(n int) *[]byte {
	step, size := sizeStep(n)
	if b, ok := messages[step].Get().(*[]byte); ok {
		*b = (*b)[:0]
		return b
	}
	b := make([]byte, 0, size)
	return &b
}

// free lets the item's message be used for another. Nobody reads its records
// any more.
func (it *item) free() {
	step, _ := sizeStep(cap(*it.message))
	messages[step].Put(it.message)
	it.message, it.batch.Records = nil, nil
}
