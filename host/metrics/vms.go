package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// vms collects what is counted of VMs. Each has many series, and the library's
// own vectors would keep a metric, its labels and their index for every one, some
// 6 KiB of each VM. Here they are there while they are asked for.
type vms struct {
	table  *table[*VM]
	series []series
}

// series is one value of every VM.
type series struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	label *dto.LabelPair // beside the VM's, whose name sorts behind it; nil: none
	of    func(v *VM) uint64
}

func (c *vms) add(kind prometheus.ValueType, name, help string, of func(v *VM) uint64) {
	desc := prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, []string{"vm"}, nil)
	c.series = append(c.series, series{desc, kind, nil, of})
}

func (c *vms) addCounter(name, help string, of func(v *VM) uint64) {
	c.add(prometheus.CounterValue, name, help, of)
}

func (c *vms) addGauge(name, help string, of func(v *VM) uint64) {
	c.add(prometheus.GaugeValue, name, help, of)
}

// addLabelled adds a counter with a label of its own: a series for each value.
func (c *vms) addLabelled(name, help, label string, of map[string]func(v *VM) uint64) {
	desc := prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, []string{label, "vm"}, nil)
	for value, f := range of {
		c.series = append(c.series, series{desc, prometheus.CounterValue, &dto.LabelPair{Name: &label, Value: &value}, f})
	}
}

// addClasses adds a counter of records: a series for each class.
func (c *vms) addClasses(name, help string, of func(v *VM) *counts) {
	byClass := map[string]func(v *VM) uint64{}
	for k := 1; k < classes; k++ {
		byClass[classNames[k]] = func(v *VM) uint64 { return of(v)[k].Load() }
	}
	c.addLabelled(name, help, "class", byClass)
}

// Describe implements prometheus.Collector.
func (c *vms) Describe(out chan<- *prometheus.Desc) {
	for _, s := range c.series {
		out <- s.desc
	}
}

// Collect implements prometheus.Collector.
func (c *vms) Collect(out chan<- prometheus.Metric) {
	name := "vm"
	for _, v := range c.table.all() {
		pair := &dto.LabelPair{Name: &name, Value: &v.label}
		alone := []*dto.LabelPair{pair}
		for i := range c.series {
			s := sample{&c.series[i], alone, float64(c.series[i].of(v))}
			if s.label != nil {
				s.labels = []*dto.LabelPair{s.label, pair}
			}
			out <- s
		}
	}
}

// sample is a series' value of a VM.
type sample struct {
	*series
	labels []*dto.LabelPair
	value  float64
}

// Desc implements prometheus.Metric.
func (s sample) Desc() *prometheus.Desc { return s.desc }

// Write implements prometheus.Metric.
func (s sample) Write(out *dto.Metric) error {
	out.Label = s.labels
	if s.kind == prometheus.CounterValue {
		out.Counter = &dto.Counter{Value: &s.value}
	} else {
		out.Gauge = &dto.Gauge{Value: &s.value}
	}
	return nil
}
