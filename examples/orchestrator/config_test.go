package main

import (
	"slices"
	"testing"
)

func TestParseConfig(t *testing.T) {
	env := func(name string) string {
		return map[string]string{"ORCHESTRATOR_DATABASE": "postgres:///x", "ORCHESTRATOR_REPO": "/mnt/nas"}[name]
	}
	c, err := parseConfig([]string{"--workers", "3"}, env)
	if err != nil || c.Workers != 3 || c.Database != "postgres:///x" || c.Repository != "/mnt/nas" || c.Instance == "" {
		t.Errorf("%+v, %v", c, err)
	}
	again, _ := parseConfig(nil, env)
	if again.Instance == c.Instance {
		t.Errorf("two runs are both %q", c.Instance)
	}
	for _, args := range [][]string{{"--workers", "0"}, {"--lease-ttl", "0s"}, {"--instance", ""},
		{"--grace", "-1s"}, {"vm1"}} {
		if _, err := parseConfig(args, env); err == nil {
			t.Errorf("%v is taken", slices.Concat(args))
		}
	}
}
