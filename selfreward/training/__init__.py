"""SFT, DPO and the merge: the only importer of TRL and PEFT."""
