package api

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
)

// service is the generated interface's implementation.
type service struct{ *Server }

func (s *service) Status(ctx context.Context, _ *apipb.StatusRequest) (*apipb.StatusResponse, error) {
	r, err := s.backend.Status(ctx)
	if err != nil {
		return nil, err
	}
	sanitize(r)
	return r, nil
}

func (s *service) ListVMs(ctx context.Context, r *apipb.ListVMsRequest) (*apipb.ListVMsResponse, error) {
	want, err := s.resolveOptional(ctx, r.Vm)
	if err != nil {
		return nil, err
	}
	vms, err := s.backend.VMs(ctx)
	if err != nil {
		return nil, err
	}
	out := &apipb.ListVMsResponse{}
	for _, v := range vms {
		if want == uuid.Nil || v.Uuid == want.String() {
			if r.Containers {
				s.addContainers(ctx, v)
			}
			sanitize(v)
			out.Vms = append(out.Vms, v)
		}
	}
	slices.SortFunc(out.Vms, func(a, b *apipb.VM) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (s *service) ListOrders(ctx context.Context, r *apipb.ListOrdersRequest) (*apipb.ListOrdersResponse, error) {
	q, err := s.query(ctx, r.Vm, r.Since, false)
	if err != nil {
		return nil, err
	}
	limit := ordersLimit(r.Limit)
	q.Order, q.Limit = r.Id, limit+1 // one more tells whether there are more
	orders, err := s.backend.Orders(ctx, q)
	if err != nil {
		return nil, err
	}
	out := &apipb.ListOrdersResponse{}
	if uint64(len(orders)) > limit {
		out.More, orders = true, orders[uint64(len(orders))-limit:]
	}
	for _, o := range orders {
		out.Orders = append(out.Orders, s.order(ctx, o))
	}
	if r.Id != "" && len(out.Orders) == 0 {
		return nil, Error(connect.CodeNotFound, "outguard orders lists them", fmt.Errorf("no order %q", r.Id))
	}
	return out, nil
}

// One answer holds so many orders by default, and never more than fit in a
// message.
const (
	defaultOrders = 1000
	maxOrders     = 5000
)

func ordersLimit(asked uint64) uint64 {
	if asked == 0 {
		return defaultOrders
	}
	return min(asked, maxOrders)
}

func (s *service) ListModels(ctx context.Context, r *apipb.ListModelsRequest) (*apipb.ListModelsResponse, error) {
	want, err := s.resolveOptional(ctx, r.Vm)
	if err != nil {
		return nil, err
	}
	models, err := s.backend.Models(ctx)
	if err != nil {
		return nil, err
	}
	out := &apipb.ListModelsResponse{}
	for i := range models {
		m := &models[i]
		if (want == uuid.Nil || m.VM == want) && (r.Engine == "" || m.Engine == r.Engine) && wantedWorkload(r, m.Workload) {
			out.Models = append(out.Models, s.model(ctx, m))
		}
	}
	return out, nil
}

func wantedWorkload(r *apipb.ListModelsRequest, workload string) bool {
	if r.Own {
		return workload == ""
	}
	return r.Workload == "" || workload == r.Workload
}

// addContainers lists a VM's containers, or says why they are not known.
func (s *Server) addContainers(ctx context.Context, v *apipb.VM) {
	id, err := uuid.Parse(v.Uuid)
	if err != nil || !v.Enrolled {
		return
	}
	places, err := s.backend.Containers(ctx, id)
	if err != nil {
		v.ContainersError = err.Error()
		return
	}
	v.CgroupsNameless, v.TasksUnplaced = places.Nameless, places.Unplaced
	for i := range places.Containers {
		v.Containers = append(v.Containers, ContainerOf(&places.Containers[i]))
	}
}

func (s *service) LearnModel(ctx context.Context, r *apipb.LearnModelRequest) (*apipb.LearnModelResponse, error) {
	vm, by, err := s.ordered(ctx, "learn", r.Vm, "")
	if err != nil {
		return nil, err
	}
	m, err := s.backend.Learn(ctx, ModelRef{r.Engine, vm, r.Workload}, by)
	if err != nil {
		return nil, err
	}
	return &apipb.LearnModelResponse{Model: s.model(ctx, &m)}, nil
}

func (s *service) SealModel(ctx context.Context, r *apipb.SealModelRequest) (*apipb.SealModelResponse, error) {
	vm, by, err := s.ordered(ctx, "seal", r.Vm, "")
	if err != nil {
		return nil, err
	}
	m, err := s.backend.Seal(ctx, ModelRef{r.Engine, vm, r.Workload}, by)
	if err != nil {
		return nil, err
	}
	return &apipb.SealModelResponse{Model: s.model(ctx, &m)}, nil
}

func (s *service) SetPolicy(ctx context.Context, r *apipb.SetPolicyRequest) (*apipb.SetPolicyResponse, error) {
	vm, by, err := s.ordered(ctx, "policy", r.Vm, "")
	if err != nil {
		return nil, err
	}
	name, number, err := s.backend.SetPolicy(ctx, vm, r.Profile, by)
	if err != nil {
		return nil, err
	}
	return &apipb.SetPolicyResponse{Profile: name, Policy: number}, nil
}

func (s *service) Pause(ctx context.Context, r *apipb.PauseRequest) (*apipb.PauseResponse, error) {
	vm, by, err := s.ordered(ctx, "pause", r.Vm, r.Reason)
	if err != nil {
		return nil, err
	}
	o, err := s.backend.Pause(ctx, vm, by)
	if err != nil {
		return nil, err
	}
	return &apipb.PauseResponse{Order: s.order(ctx, o)}, nil
}

func (s *service) Resume(ctx context.Context, r *apipb.ResumeRequest) (*apipb.ResumeResponse, error) {
	vm, by, err := s.ordered(ctx, "resume", r.Vm, r.Reason)
	if err != nil {
		return nil, err
	}
	o, err := s.backend.Resume(ctx, vm, by)
	if err != nil {
		return nil, err
	}
	return &apipb.ResumeResponse{Order: s.order(ctx, o)}, nil
}

// containing are the steps that Contain takes.
var containing = []string{"isolate", "connect", "thaw", "reset", "destroy", "save", "revert", "unsave"}

func (s *service) Contain(ctx context.Context, r *apipb.ContainRequest) (*apipb.ContainResponse, error) {
	if !slices.Contains(containing, r.Step) {
		return nil, invalid("", "step %q is none of %s", r.Step, strings.Join(containing, ", "))
	}
	state, err := stateOf(r)
	if err != nil {
		return nil, err
	}
	vm, by, err := s.ordered(ctx, r.Step, r.Vm, r.Reason)
	if err != nil {
		return nil, err
	}
	o, err := s.backend.Contain(ctx, vm, r.Step, state, by)
	if err != nil {
		return nil, err
	}
	return &apipb.ContainResponse{Order: s.order(ctx, o)}, nil
}

var stateName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9-]{0,63}$`)

// stateOf is the saved state that a step is about, "" for steps about none.
func stateOf(r *apipb.ContainRequest) (string, error) {
	switch {
	case r.Step == "save" && r.State == "":
		return time.Now().UTC().Format("20060102-150405"), nil
	case r.Step != "save" && r.Step != "revert" && r.Step != "unsave":
		if r.State != "" {
			return "", invalid("", "step %q is about no saved state", r.Step)
		}
	case !stateName.MatchString(r.State):
		return "", invalid("", "state %q: want letters, digits and dashes, at most 64", r.State)
	}
	return r.State, nil
}

func (s *service) ListSaved(ctx context.Context, r *apipb.ListSavedRequest) (*apipb.ListSavedResponse, error) {
	vm, err := s.resolve(ctx, r.Vm)
	if err != nil {
		return nil, err
	}
	all, err := s.backend.Saved(ctx, vm)
	return &apipb.ListSavedResponse{Saved: all}, err
}

func (s *service) ListBundles(ctx context.Context, r *apipb.ListBundlesRequest) (*apipb.ListBundlesResponse, error) {
	want, err := s.resolveOptional(ctx, r.Vm)
	if err != nil {
		return nil, err
	}
	bundles, err := s.backend.Bundles(ctx)
	if err != nil {
		return nil, err
	}
	out := &apipb.ListBundlesResponse{}
	for _, b := range bundles {
		if want == uuid.Nil || b.Uuid == want.String() {
			out.Bundles = append(out.Bundles, s.bundle(ctx, b))
		}
	}
	return out, nil
}

// ordered finds the VM of an order, and logs who gives it, before it is carried
// out: an order that fails has a caller as well.
func (s *Server) ordered(ctx context.Context, step, vm, reason string) (uuid.UUID, Caller, error) {
	if len(reason) > maxReason {
		return uuid.Nil, Caller{}, invalid("", "reason of %d bytes, limit %d", len(reason), maxReason)
	}
	id, err := s.resolve(ctx, vm)
	if err != nil {
		return uuid.Nil, Caller{}, err
	}
	by := callerOf(ctx, reason)
	s.opts.Log.Info("order over the api", slog.String("step", step), slog.String("vm", id.String()),
		slog.Int("pid", int(by.PID)), slog.Uint64("uid", uint64(by.UID)), slog.Uint64("gid", uint64(by.GID)),
		slog.String("reason", reason))
	return id, by, nil
}

const maxReason = 1024

func (s *Server) order(ctx context.Context, o *apipb.Order) *apipb.Order {
	s.fillName(ctx, &o.Vm, o.Uuid)
	sanitize(o)
	return o
}

func (s *Server) model(ctx context.Context, m *Model) *apipb.Model {
	out := ModelOf(m)
	s.fillName(ctx, &out.Vm, out.Uuid)
	return out
}

func (s *Server) query(ctx context.Context, vm, since string, follow bool) (Query, error) {
	id, err := s.resolveOptional(ctx, vm)
	if err != nil {
		return Query{}, err
	}
	at, err := parseSince(since)
	return Query{VM: id, Since: at, Follow: follow}, err
}

func (s *Server) fillName(ctx context.Context, name *string, id string) {
	if *name == "" && id != "" {
		if u, err := uuid.Parse(id); err == nil {
			*name = s.names.of(ctx, u)
		}
	}
}

// resolveOptional finds the VM of a question. The record outlives its VM: one
// that libvirt no longer knows can be asked for by its UUID.
func (s *Server) resolveOptional(ctx context.Context, vm string) (uuid.UUID, error) {
	if vm == "" {
		return uuid.Nil, nil
	}
	id, err := s.resolve(ctx, vm)
	if connect.CodeOf(wireError(err)) == connect.CodeNotFound {
		if gone, perr := uuid.Parse(vm); perr == nil {
			return gone, nil
		}
	}
	return id, err
}

// resolve finds a VM by name first: a domain may be named like a UUID.
func (s *Server) resolve(ctx context.Context, vm string) (uuid.UUID, error) {
	if vm == "" {
		return uuid.Nil, invalid("outguard vms lists the domains", "no VM is named")
	}
	all, err := s.backend.Names(ctx)
	if err != nil {
		return uuid.Nil, err
	}
	for id, name := range all {
		if name == vm || safe.Text(name) == vm {
			return id, nil
		}
	}
	if id, err := uuid.Parse(vm); err == nil {
		if _, ok := all[id]; ok {
			return id, nil
		}
	}
	return uuid.Nil, Error(connect.CodeNotFound,
		"`outguard vms` lists the domains, `outguard enroll` adds one", fmt.Errorf("no VM %q is known", vm))
}

// nameAge is how old a name may be that stands in an answer.
const nameAge = 2 * time.Second
