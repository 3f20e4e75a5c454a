package executortest

import (
	"slices"
	"strings"
)

// ability is what a World may have beside its methods.
type ability string

const (
	canGrow     ability = "Grower"
	canSnapshot ability = "Snapshotter"
	canPlug     ability = "Plugger"
	canMeddle   ability = "Meddler"
	canFill     ability = "Filler"
	canAgent    ability = "AgentSwitch"
)

// of says whether the world has it.
func (a ability) of(w World) bool {
	var ok bool
	switch a {
	case canGrow:
		_, ok = w.(Grower)
	case canSnapshot:
		_, ok = w.(Snapshotter)
	case canPlug:
		_, ok = w.(Plugger)
	case canMeddle:
		_, ok = w.(Meddler)
	case canFill:
		_, ok = w.(Filler)
	case canAgent:
		_, ok = w.(AgentSwitch)
	}
	return ok
}

// stepAbilities are what steps need, by their first words.
var stepAbilities = map[string]ability{
	"grow": canGrow, "snapshot": canSnapshot, "commit": canSnapshot, "attach": canPlug, "detach": canPlug,
	"replace":            canPlug,
	"foreign-checkpoint": canMeddle, "foreign-bitmap": canMeddle, "lose-metadata": canMeddle,
	"lose-checkpoint": canMeddle, "lose-bitmap": canMeddle,
}

// abilitiesOf lists what the steps need, each once.
func abilitiesOf(steps []string) (all []ability) {
	for _, line := range steps {
		need := stepAbilities[strings.Fields(line)[0]]
		if strings.Contains(line, "full-target") {
			need = canFill
		}
		if need != "" && !slices.Contains(all, need) {
			all = append(all, need)
		}
	}
	return all
}

// lacks names those that the world doesn't have.
func lacks(w World, all []ability) (missing []string) {
	for _, a := range all {
		if !a.of(w) {
			missing = append(missing, string(a))
		}
	}
	return missing
}
