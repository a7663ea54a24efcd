package api

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/safe"
)

// names remembers domain names, which libvirt may change, for nameAge.
type names struct {
	list func(context.Context) (map[uuid.UUID]string, error)

	mu   sync.Mutex // guards what follows; held while list runs, so that it runs once
	at   time.Time
	byID map[uuid.UUID]string
}

// of returns the domain's name, "" if it has none any more.
func (n *names) of(ctx context.Context, id uuid.UUID) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if time.Since(n.at) > nameAge {
		n.refresh(ctx)
	}
	return n.byID[id]
}

// refresh keeps the old names where the new ones cannot be had.
func (n *names) refresh(ctx context.Context) {
	n.at = time.Now()
	all, err := n.list(ctx)
	if err != nil {
		return
	}
	byID := make(map[uuid.UUID]string, len(all))
	for id, name := range all {
		byID[id] = safe.Text(name)
	}
	n.byID = byID
}
