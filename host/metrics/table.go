package metrics

import "sync"

// table holds one value for each key, of at most limit keys; all further keys
// share one value, labelled "other". A label has one key: one that is taken is
// not given again, and the key stands in its place.
type table[V any] struct {
	limit int

	mu    sync.Mutex // guards what follows
	byKey map[string]entry[V]
	taken map[string]bool // labels
	rest  *entry[V]
}

type entry[V any] struct {
	label string
	value V
}

func (t *table[V]) get(key, label string, make func(label string) V) V {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.byKey[key]; ok {
		return e.value
	}
	if len(t.byKey) >= t.limit {
		if t.rest == nil {
			t.rest = &entry[V]{other, make(other)}
		}
		return t.rest.value
	}
	if t.byKey == nil {
		t.byKey, t.taken = map[string]entry[V]{}, map[string]bool{other: true}
	}
	if t.taken[label] {
		label = key
	}
	t.taken[label] = true
	e := entry[V]{label, make(label)}
	t.byKey[key] = e
	return e.value
}

// label is that of a key that get has seen, "other" for the rest.
func (t *table[V]) label(key string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.byKey[key]; ok {
		return e.label
	}
	return other
}

func (t *table[V]) drop(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.taken, t.byKey[key].label)
	delete(t.byKey, key)
}

// all are the values that there are, in no order.
func (t *table[V]) all() []V {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]V, 0, len(t.byKey)+1)
	for _, e := range t.byKey {
		list = append(list, e.value)
	}
	if t.rest != nil {
		list = append(list, t.rest.value)
	}
	return list
}

// bounded passes the first limit different values through.
type bounded struct {
	limit int

	mu   sync.Mutex // guards seen
	seen map[string]bool
}

func (b *bounded) label(v string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.seen[v]:
		return v
	case len(b.seen) >= b.limit:
		return other
	}
	if b.seen == nil {
		b.seen = map[string]bool{}
	}
	b.seen[v] = true
	return v
}
