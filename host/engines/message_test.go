package engines

import (
	"testing"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// Every length has a step, whose messages have room for it and not much more.
func TestSizeSteps(t *testing.T) {
	for n := 0; n <= engine.MessageHeader+engine.MaxBatchMessage; n += 1 + n/1000 {
		step, size := sizeStep(n)
		if step < 0 || step >= len(messages) || size < n || size > max(n+n/4+1, leastMessage) {
			t.Fatalf("%d bytes: step %d of %d bytes", n, step, size)
		}
		if again, same := sizeStep(size); again != step || same != size {
			t.Fatalf("step %d of %d bytes comes back as step %d of %d", step, size, again, same)
		}
	}
}

// A batch that a checkpoint covers while its verdict is being handed on keeps
// its records until that is done.
func TestWhatIsBeingToldIsNotUsedAgain(t *testing.T) {
	s := New(Config{Name: "none"}, func(engine.Finding) {}, nil)
	vm := uuid.UUID{1}
	if !s.TrySubmit(&engine.Batch{VM: vm, Count: 1, Records: []byte("12345678")}) {
		t.Fatal("no room")
	}
	q := s.vms[vm]
	it := q.items[0]
	it.telling = true
	s.release(q, 1)
	if string(it.batch.Records) != "12345678" {
		t.Fatal("let go of while it is told")
	}
	it.letGo()
	if it.message != nil || it.batch.Records != nil {
		t.Error("not let go of when it was told")
	}
}
