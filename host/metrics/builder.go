package metrics

import "github.com/prometheus/client_golang/prometheus"

// builder makes collectors under the one namespace and registers them.
type builder struct{ r *prometheus.Registry }

const namespace = "outguard"

func (b builder) counter(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	b.r.MustRegister(c)
	return c
}

func (b builder) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	c := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, labels)
	b.r.MustRegister(c)
	return c
}

func (b builder) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	c := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Name: name, Help: help, Buckets: buckets,
	}, labels)
	b.r.MustRegister(c)
	return c
}
