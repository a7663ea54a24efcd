package api_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/apipb/apipbconnect"
	"github.com/outguard/outguard/host/api/apitest"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// batchOf is a batch of file_open events in those cgroups, with a record that
// names the first one before them where its path is said.
func batchOf(t *testing.T, session uuid.UUID, path string, cgroups ...uint64) *engine.Batch {
	t.Helper()
	b := &engine.Batch{VM: web, Session: session, Received: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	add := func(e *vsockproto.Event) {
		e.Class, e.Sequence = e.Type.Class(), 1
		var err error
		if b.Records, err = e.Append(b.Records); err != nil {
			t.Fatal(err)
		}
		b.Count++
	}
	if path != "" {
		e := &vsockproto.Event{Header: vsockproto.Header{Type: vsockproto.CgroupMkdir}, Cgroup: vsockproto.Cgroup{ID: cgroups[0]}}
		e.Path.Data = []byte(path)
		add(e)
	}
	for _, id := range cgroups {
		e := &vsockproto.Event{Header: vsockproto.Header{Type: vsockproto.FileOpen}}
		e.CgroupID = id
		add(e)
	}
	return b
}

// TestEventsNameTheirContainer: by what the records say on the way, by what is
// known of the session, and not by another session's numbers.
func TestEventsNameTheirContainer(t *testing.T) {
	b := apitest.New()
	c, _ := serve(t, b, nil)
	two, three := uuid.UUID{2}, uuid.UUID{3}
	b.Add(&apipb.VM{Name: "web", Uuid: web.String()},
		&api.Cgroups{Session: two, Paths: map[uint64]string{7: "/docker/known\x1b", 8: "/system.slice/x.service"}},
		batchOf(t, two, "", 7, 8, 9), batchOf(t, two, "/crun-b", 7), batchOf(t, three, "/crun-a", 7, 8))
	got := containersOf(t, c, &apipb.EventsRequest{Types: []string{"file_open"}})
	want := []string{`/docker/known\x1b docker known\x1b`, "/system.slice/x.service  ", "  ", "/crun-b crun b", "/crun-a crun a", "  "}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	got = containersOf(t, c, &apipb.EventsRequest{Types: []string{"file_open"}, Cgroup: "/crun-?"})
	if want := []string{"/crun-b crun b", "/crun-a crun a"}; !slices.Equal(got, want) {
		t.Errorf("of some cgroups %q, want %q", got, want)
	}
}

func containersOf(t *testing.T, c apipbconnect.OutguardClient, r *apipb.EventsRequest) (got []string) {
	t.Helper()
	s, err := c.Events(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for s.Receive() {
		for _, e := range s.Msg().Events {
			got = append(got, e.Subject.Cgroup+" "+e.Subject.Runtime+" "+e.Subject.Container)
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return got
}
