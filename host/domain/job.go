package domain

import (
	"context"
	"errors"
	"fmt"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
)

// abortWithin is how long libvirt may take to abort a job.
const abortWithin = 30 * time.Second

// during runs fn, tells how far libvirt's job has come meanwhile, unless part is
// "", and has the job end when ctx does, if abort says how; it returns after fn has,
// so that nothing is written any more, unless that takes too long.
func (k *taking) during(ctx context.Context, part string, abort func(), fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	if part != "" {
		k.tell(part, job{})
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	ended := ctx.Done()
	var late <-chan time.Time
	for {
		select {
		case err := <-done:
			if ctx.Err() != nil {
				return errors.Join(context.Cause(ctx), err)
			}
			return err
		case <-ended:
			ended, late = nil, time.After(abortWithin)
			if abort != nil {
				abort()
			}
		case <-late:
			return errors.Join(context.Cause(ctx), fmt.Errorf("libvirt has not ended its job within %s", abortWithin))
		case <-tick.C:
			if part == "" {
				continue
			}
			if j, err := k.job(ctx, 0); err == nil {
				k.tell(part, j)
			}
		}
	}
}

func (k *taking) tell(part string, j job) {
	if k.progress != nil {
		k.progress(Progress{Part: part, Done: j.done, Total: j.total})
	}
}

// abort stops the domain's job; there may be none any more. Only who began that job
// may call it: libvirt ends whichever is under way, also a migration.
func (k *taking) abort() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := k.c.call(ctx, k.c.of(k.vm), func(l *libvirt.Libvirt) error { return l.DomainAbortJob(k.c.handle(k.vm)) })
	if err != nil {
		k.c.log.Debug("abort job", "vm", k.vm, "err", err)
	}
}

// job is what libvirt says of a domain's job.
type job struct {
	kind        int32 // 0: none
	done, total uint64
	ok, told    bool // how a completed one ended
	message     string
}

const (
	statsCompleted = 1 // VIR_DOMAIN_JOB_STATS_COMPLETED: of the last job, once
	jobCompleted   = 3 // VIR_DOMAIN_JOB_COMPLETED
)

func (k *taking) job(ctx context.Context, flags libvirt.DomainGetJobStatsFlags) (j job, err error) {
	err = k.c.call(ctx, k.c.of(k.vm), func(l *libvirt.Libvirt) error {
		kind, params, err := l.DomainGetJobStats(k.c.handle(k.vm), flags)
		j.kind = kind
		for _, p := range params {
			switch v := p.Value.I.(type) {
			case uint64:
				switch p.Field {
				case libvirt.DomainJobDiskTotal, libvirt.DomainJobMemoryTotal:
					j.total = max(j.total, v)
				case libvirt.DomainJobDiskProcessed, libvirt.DomainJobMemoryProcessed:
					j.done = max(j.done, v)
				}
			case int32:
				if p.Field == libvirt.DomainJobSuccess {
					j.ok, j.told = v != 0, true
				}
			case string:
				if p.Field == libvirt.DomainJobErrmsg {
					j.message = v
				}
			}
		}
		return err
	})
	return j, err
}
