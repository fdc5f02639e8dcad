"""conftest.py of the tree that `make test-old` lays out: what the old stack lacks, and the tests that ask for it."""
import torch

# Beginnings of the names of tests, with what the published repository has not.
NOT_THERE = {
    "test_a_misspelt_parameter_is_named_with_the_nearest": "its instantiate_from_config leaves that to Python's own TypeError",
    "test_the_plain_class_refuses_a_regularization_config": "its LatentDiffusion is not ours to change",
    "test_a_model_without_a_way_for_text_is_refused": "it builds no model without personalisation",
    "test_a_condition_that_is_no_text_is_refused_when_training_begins": "the same",
    "test_a_hybrid_network_reuses_the_batchs_other_condition": "the same",
    "test_one_pass_takes_a_hybrid_networks_conditions_together": "the same",
    "test_progressive_words_count_as_in_an_unregularised_run": "several vectors a word cannot be trained there; test_patched.py has what remains of it",
    "test_captions_are_seen_where_the_encoder_is_trained_and_where_it_is_not": "no train_embeddings; test_patched.py has it without",
    "test_a_text_encoder_that_is_not_tuned_is_not_copied": "no train_embeddings: unfrozen, its optimiser always has the encoder",
    "test_with_a_fixed_word_outputs_are_stored_and_found_again": "no train_embeddings",
    "test_they_leave_the_words_own_training_alone": "no train_embeddings",
    "test_with_a_word_that_moves_storing_is_refused_and_what_fits_is_named[growing": "no train_embeddings",
    "test_pictures_of_a_real_first_stage[CODEBOOK": "the stand-ins have one first stage",
    "test_copy_in_half_precision_rounds_and_answers_in_the_students_dtype[float16": "torch 1.10 knows no float16 on the CPU",
    "test_term_and_gradient_are_exactly_zero_at_step_zero": "no adapter_config",
    "test_it_is_the_copy_without_the_copy": "the same",
    "test_theta_0_is_that_of_a_run_on_the_whole_network": "the same",
    "test_training_moves_the_adapters_and_not_theta_0": "the same",
    "test_with_weight_0_adapters_are_tuned": "the same",
    "test_nothing_is_held_while_the_word_learns_alone": "the same",
    "test_an_untuned_text_encoder_is_not_copied": "the same",
    "test_the_student_is_the_averaged_network_inside_ema_scope": "its averages begin before the checkpoint is read",
}


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if item.name.startswith(tuple(NOT_THERE))]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


load_as_it_is = torch.load


def load(f, *args, **kwargs):
    """Tests say weights_only=True, which this torch does not know; the code itself must do without."""
    kwargs.pop("weights_only", None)
    return load_as_it_is(f, *args, **kwargs)


torch.load = load
