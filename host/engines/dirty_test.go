package engines

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/plugins/engine"
)

// Of thousands of VMs with something new only the oldest get a checkpoint for
// their age, and where memory runs out those that keep most.
func TestCheckpointsAreFewAtOnce(t *testing.T) {
	const vms = 1000
	s := New(Config{Name: "none"}, func(engine.Finding) {}, nil)
	for i := range vms {
		q := s.queue(uuid.UUID{byte(i), byte(i >> 8)})
		q.items = []*item{{vm: q, answered: true}}
		q.dirtySince = time.Now().Add(-time.Hour + time.Duration(i)*time.Second)
		q.kept = 1000 + i
		s.total += q.kept
	}
	old := s.dirty(time.Second)
	if len(old) != oldAtOnce || old[0] != (uuid.UUID{}) || old[oldAtOnce-1] != (uuid.UUID{oldAtOnce - 1}) {
		t.Errorf("the oldest: %v", old)
	}
	if n := len(s.dirty(0)); n != vms {
		t.Errorf("at the end %d of %d", n, vms)
	}
	s.opts.TotalBytes = s.total // it keeps all that it may
	due := s.dirty(24 * time.Hour)
	left := s.total
	for _, vm := range due {
		left -= s.vms[vm].kept
	}
	if left > s.total/4 || left < s.total/4-2*(1000+vms) || s.vms[due[0]].kept != 1000+vms-1 {
		t.Errorf("%d VMs, the first keeps %d, which leaves %d of %d", len(due), s.vms[due[0]].kept, left, s.total)
	}
}
