package monitor_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// contained are the events of a guest's first process, and of a program that
// starts in a container of the cgroup 4711, which prototest names crun-web.
func contained(path string) []*vsockproto.Event {
	init := prototest.Sample(vsockproto.TaskSnapshot)
	init.Subject.Task, init.LeaderStartNs, init.KernelThread = vsockproto.Task{PID: 1, TGID: 1, StartNs: 1}, 1, false
	start := prototest.Sample(vsockproto.BprmCommittedCreds)
	open := prototest.Sample(vsockproto.FileOpen)
	open.Path.Data = []byte(path)
	for _, e := range []*vsockproto.Event{start, open} {
		e.Subject.Task, e.LeaderStartNs, e.KernelThread = vsockproto.Task{PID: 50, TGID: 50, StartNs: 7}, 7, false
		e.CgroupID, e.MntNS, e.PidNS = 4711, 77, 78
	}
	return []*vsockproto.Event{init, prototest.Sample(vsockproto.CgroupMkdir), start, open}
}

func (h *host) workload(t *testing.T, name string) *apipb.Model {
	t.Helper()
	r, err := h.api.ListModels(t.Context(), &apipb.ListModelsRequest{Vm: h.vm.String(), Workload: name})
	if err != nil || len(r.Models) != 1 {
		t.Fatalf("models %v, %v", r.GetModels(), err)
	}
	return r.Models[0]
}

// TestDaemonWorkloads: a container's model is sealed by itself and shared, which
// outlives the monitor; its violation is its own, and events and containers are
// named.
func TestDaemonWorkloads(t *testing.T) {
	const web = "crun/web"
	h := newHost(t)
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.connect(a)
	send(t, a, contained("/srv/known")...)
	h.eventually("a model of the container", func() error {
		_, err := h.api.SealModel(t.Context(), &apipb.SealModelRequest{Vm: h.vm.String(), Workload: web})
		return err
	})
	if _, err := h.api.JoinModel(t.Context(), &apipb.JoinModelRequest{Vm: h.vm.String(), Workload: web, Group: "webs"}); err != nil {
		t.Fatal(err)
	}
	before := h.workload(t, web)

	_ = h.end(syscall.SIGKILL)
	_ = stop()
	h.start()
	stop = h.connect(a)
	h.eventually("the session resumes", func() error {
		if _, resumed := a.Welcome(); !resumed {
			return errors.New("not resumed")
		}
		return nil
	})
	if after := h.workload(t, web); !after.Sealed || after.Group != "webs" || after.State != before.State || after.Measurement != before.Measurement {
		t.Errorf("after a kill: %v, before: %v", after, before)
	}
	events := contained("/srv/new")
	send(t, a, events[len(events)-1], opened("/etc/passwd"))
	f := h.await("tsem/violation")
	if f.Path != "/srv/new" || f.Detail["workload"] != web || f.Detail["group"] != "webs" || f.Detail["container"] != "web" {
		t.Errorf("finding: %v", f)
	}
	h.eventually("containers", func() error {
		r, err := h.api.ListVMs(t.Context(), &apipb.ListVMsRequest{Vm: h.vm.String(), Containers: true})
		if err != nil {
			return err
		}
		if c := r.Vms[0].Containers; len(c) != 1 || c[0].Id != "web" || c[0].Runtime != "crun" || c[0].Workload != web || c[0].MntNs != 77 || c[0].Tasks != 1 {
			return fmt.Errorf("%v, %s", c, r.Vms[0].ContainersError)
		}
		return nil
	})
	if got := h.namedIn(t); !slices.Equal(got, []string{"/srv/known", "/srv/new"}) {
		t.Errorf("events in the container: %q", got)
	}
	_ = stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

// TestDaemonGroups: what the configuration says is shared is so as soon as a domain
// is enrolled, its container there or not, and after a restart.
func TestDaemonGroups(t *testing.T) {
	h := newHost(t)
	h.configure("groups:\n  - {name: webs, vm: \"we?\", workload: crun/web}\n  - {name: others, vm: \"*\", workload: crun/web}\n")
	h.enrol(uuid.UUID{7}, "db")
	h.start()
	shared := func() error {
		r, err := h.api.ListModels(t.Context(), &apipb.ListModelsRequest{Workload: "crun/web"})
		if err != nil {
			return err
		}
		got := map[string]string{}
		for _, m := range r.Models {
			got[m.Uuid] = m.Group
		}
		if want := map[string]string{h.vm.String(): "webs", uuid.UUID{7}.String(): "others"}; !maps.Equal(got, want) {
			return fmt.Errorf("groups %v, want %v", got, want)
		}
		return nil
	}
	h.eventually("groups", shared)
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.start()
	h.eventually("groups after a restart", shared)
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

// namedIn are the paths of files opened in the container's cgroup.
func (h *host) namedIn(t *testing.T) (paths []string) {
	t.Helper()
	s, err := h.api.Events(t.Context(), &apipb.EventsRequest{Vm: h.vm.String(), Cgroup: "*/crun-web.scope", Types: []string{"file_open"}})
	if err != nil {
		t.Fatal(err)
	}
	for s.Receive() {
		for _, e := range s.Msg().Events {
			paths = append(paths, e.File.Path)
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return paths
}
