package monitor

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/outguard/outguard/host/session"
	"github.com/outguard/outguard/plugins/engine"
)

// stageNames are the legs of a batch's way from arrival to verdict, in order:
//
//	walk    is there anything critical in the frame
//	append  hashed, chained and written to its VM's record
//	check   every record parsed and entered in the account
//	hand    copied and written to the engine's stream
//	engine  the engine's process woken, decoded, judged, answered; and we woken
var stageNames = [...]string{"walk", "append", "check", "hand", "engine"}

// moments are when each leg began, and when the last one ended.
type moments [len(stageNames) + 1]time.Time

// watch takes the time around what a session stands on.
type watch struct {
	session.Recorder
	session.Sink

	mu   sync.Mutex
	at   map[uint64]*moments // of batches under way, by index
	took [len(stageNames)][]time.Duration
}

func (w *watch) around(p *session.Parts) {
	w.Recorder, w.Sink = p.Recorder, p.Sink
	p.Recorder, p.Sink = w, w
}

func (w *watch) start(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.took {
		w.took[i] = make([]time.Duration, 0, n)
	}
}

func (w *watch) Record(r *session.Received) (uint64, error) {
	began := time.Now()
	index, err := w.Recorder.Record(r)
	ended := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at[index] = &moments{r.At, began, ended}
	return index, err
}

func (w *watch) Deliver(ctx context.Context, b *engine.Batch) error {
	w.mu.Lock()
	m := w.at[b.Index]
	m[3] = time.Now()
	w.mu.Unlock()
	err := w.Sink.Deliver(ctx, b)
	handed := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if m[4].IsZero() { // else it was judged before this goroutine could go on
		m[4] = handed
	}
	return err
}

func (w *watch) judged(b *engine.Batch, verdict time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.at[b.Index]
	delete(w.at, b.Index)
	if m == nil || w.took[0] == nil {
		return
	}
	if m[4].IsZero() {
		m[4] = verdict
	}
	m[5] = verdict
	for i := range w.took {
		w.took[i] = append(w.took[i], m[i+1].Sub(m[i]))
	}
}

// report prints the median of each leg.
func (w *watch) report(b *testing.B) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, name := range stageNames {
		b.ReportMetric(float64(quantile(w.took[i], 0.5))/1e3, name+"-p50-us")
	}
}
